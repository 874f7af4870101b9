//! Tests of each format's text; other programs take it in tests of their own.

use super::*;
use crate::config::parse as parse_config;
use crate::controller::{make_ruleset, offline_preferences};
use crate::list::{Instance, parse};
use crate::ruleset::Slots;
use crate::timestamp::Timestamp;

const CONFIG: &str =
    "[[lan]]\ninterface = \"lan\"\n[egress.local]\ninterface = \"inet\"\ngateway = \"10.3.0.2\"\n";
const LIST: &str = r#"[
    {"id":1,"serviceArea":"Exchange","ips":["40.96.0.0/13","40.104.0.0/15","2603:1006::/40"],"tcpPorts":"80,443","category":"Optimize"},
    {"id":2,"serviceArea":"Exchange","ips":["40.96.0.0/13"],"tcpPorts":"143,993","category":"Allow"},
    {"id":12,"serviceArea":"Skype","ips":["52.112.0.0/14"],"tcpPorts":"443","category":"Allow"}]"#;

fn written(config: &str, only: &[String], format: Format) -> Result<String> {
    let config = parse_config(&format!("{CONFIG}{config}"), "c").unwrap();
    let lists = [parse(LIST.as_bytes(), Instance::Worldwide, "test").unwrap()];
    let indices = offline_preferences(&config);
    let (mut slots, now) = (Slots::default(), Timestamp::default());
    let ruleset = make_ruleset(&config, &lists, &indices, &mut slots, now).unwrap();
    let source = Source {
        config: &config,
        lists: &lists,
        ruleset: &ruleset,
        preferences: &indices,
        only,
    };
    let pac = Pac {
        kind: 1,
        proxy: "PROXY p:1".to_owned(),
    };
    export(&source, format, &pac)
}

fn body(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.starts_with(['#', '!']))
        .collect()
}

#[test]
fn formats_without_ports_say_what_they_match_beyond() {
    for format in [
        Format::Edl,
        Format::Iproute2,
        Format::Bird,
        Format::Frr,
        Format::Wireguard,
    ] {
        let text = written("", &[], format).unwrap();
        assert!(
            text.contains("Worldwide 2 (Exchange, Allow): TCP 143, TCP 993"),
            "{text}"
        );
        assert!(!text.contains("Worldwide 12 "), "{text}");
    }
    assert!(!written("", &[], Format::Nft).unwrap().contains("no ports"));
}

#[test]
fn what_a_format_cannot_hold_is_refused() {
    let config = "[egress.b]\ninterface = \"a;b#\"\n[[policy]]\nsets = [1]\naction = \"b\"\n";
    for format in [Format::Iproute2, Format::Bird, Format::Frr] {
        let error = written(config, &[], format).unwrap_err().to_string();
        assert!(error.contains("the format cannot hold"), "{error}");
    }
    assert!(written(config, &[], Format::Edl).is_ok());
}

#[test]
fn routes_have_the_egress() {
    let text = written("", &[], Format::Iproute2).unwrap();
    assert_eq!(
        body(&text),
        [
            "route replace 40.96.0.0/13 via 10.3.0.2 dev inet",
            "route replace 40.104.0.0/15 via 10.3.0.2 dev inet",
            "route replace 2603:1006::/40 dev inet"
        ]
    );
    assert_eq!(
        body(&written("", &[], Format::Frr).unwrap())[0],
        "ip route 40.96.0.0/13 10.3.0.2 inet"
    );
    assert_eq!(body(&written("", &[], Format::Edl).unwrap()).len(), 3);
}

#[test]
fn a_tunnel_gets_all_but_what_is_steered() {
    let text = written("", &[], Format::Wireguard).unwrap();
    let line = body(&text)[0].strip_prefix("AllowedIPs = ").unwrap();
    let nets: Vec<IpNet> = line.split(", ").map(|net| net.parse().unwrap()).collect();
    let within = |address: &str| {
        let address: std::net::IpAddr = address.parse().unwrap();
        nets.iter().filter(|net| net.contains(&address)).count()
    };
    for inside in [
        "0.0.0.0",
        "40.95.255.255",
        "40.106.0.0",
        "52.112.0.1",
        "::",
        "2603:1005::1",
        "ffff::",
    ] {
        assert_eq!(within(inside), 1, "{inside}");
    }
    for outside in ["40.96.0.0", "40.105.255.255", "2603:1006::1"] {
        assert_eq!(within(outside), 0, "{outside}");
    }
}

#[test]
fn rules_are_chosen_by_name_and_conditional_ones_are_left_out() {
    let config = "[[policy]]\nname = \"mail\"\nsets = [1]\nports = \"tcp 443\"\naction = \"local\"\n\
                  [[policy]]\nname = \"calls\"\nsets = [12]\naction = \"local\"\n\
                  [[policy]]\nname = \"guests\"\nsets = [2]\nsources = \"10.9.0.0/16\"\naction = \"local\"\n";
    let json: serde_json::Value =
        serde_json::from_str(&written(config, &[], Format::Json).unwrap()).unwrap();
    let rules = json["rules"].as_array().unwrap();
    let names: Vec<&str> = rules
        .iter()
        .map(|rule| rule["policy"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["mail", "calls"]);
    assert_eq!(rules[0]["ports"], serde_json::json!(["TCP 443"]));
    let edl = written(config, &["calls".to_owned()], Format::Edl).unwrap();
    assert_eq!(body(&edl), ["52.112.0.0/14"]);
    assert!(edl.contains("LEFT OUT: policy \"guests\""), "{edl}");
    let error = written(config, &["nobody".to_owned()], Format::Edl).unwrap_err();
    assert!(
        error.to_string().contains("there are: mail, calls, guests"),
        "{error}"
    );
}
