use super::*;
use crate::list::{Instance, embedded, parse};

fn judge() -> Judge {
    Judge::new(
        &ListConfig::default(),
        vec!["20.20.0.0/24".parse().unwrap()],
    )
}

/// A judge for whom any network may be Microsoft's.
fn open_judge() -> Judge {
    Judge {
        unknown_networks: UnknownNetworks::Allow,
        ..judge()
    }
}

fn list(rows: &str) -> List {
    parse(rows.as_bytes(), Instance::Worldwide, "test").unwrap()
}

fn set(id: u32, category: &str, prefixes: &[&str]) -> String {
    format!(r#"{{"id":{id},"ips":{prefixes:?},"tcpPorts":"443","category":"{category}"}}"#)
}

fn refusal(before: &List, new: &str) -> String {
    open_judge().judge(before, &list(new)).refusal()
}

#[test]
fn the_built_in_lists_pass() {
    for instance in Instance::ALL {
        let list = embedded(instance);
        assert_eq!(
            judge().judge(&list, &list),
            Judgement::default(),
            "{instance}"
        );
    }
}

#[test]
fn prefixes_that_no_service_has_are_refused() {
    let before = list(&format!("[{}]", set(1, "Optimize", &["40.96.0.0/13"])));
    for (prefix, part) in [
        ("0.0.0.0/0", "every address"),
        ("40.0.0.0/8", "shorter than /10"),
        ("2000::/16", "shorter than /28"),
        ("10.1.0.0/16", "10.0.0.0/8"),
        ("192.168.3.0/24", "192.168.0.0/16"),
        ("192.88.99.0/24", "192.88.99.0/24"),
        ("2001::/32", "2001::/23"),
        ("2002:2860::/28", "2002::/16"),
        ("127.0.0.1/32", "127.0.0.0/8"),
        ("239.1.0.0/16", "224.0.0.0/3"),
        ("fe80::/64", "fe80::/10"),
        ("20.20.0.0/16", "a network of this gateway"),
        ("40.96.0.1/13", "beyond its prefix length"),
    ] {
        let new = format!("[{}]", set(1, "Optimize", &["40.96.0.0/13", prefix]));
        let refusal = refusal(&before, &new);
        assert!(refusal.contains(part), "{prefix}: {refusal}");
        assert!(refusal.starts_with("endpoint set 1: "), "{refusal}");
    }
}

#[test]
fn large_losses_are_refused() {
    let prefixes: Vec<String> = (0..10).map(|n| format!("40.{n}.0.0/16")).collect();
    let names: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    let before = list(&format!("[{}]", set(1, "Optimize", &names)));
    let keep = |count: usize| format!("[{}]", set(1, "Optimize", &names[..count]));
    assert_eq!(refusal(&before, &keep(6)), "");
    let text = refusal(&before, &keep(5));
    assert!(
        text.contains("50 % of the IPv4 addresses that are steered (327680 of 655360 IPv4 addresses) are gone at once"),
        "{text}"
    );
    // Many prefixes, but hardly an address.
    let small: Vec<String> = (0..100).map(|n| format!("41.0.{n}.0/32")).collect();
    let small = small.iter().map(String::as_str);
    let many: Vec<&str> = names.iter().copied().chain(small).collect();
    let many = list(&format!("[{}]", set(1, "Optimize", &many)));
    assert_eq!(refusal(&many, &keep(10)), "");
    let halves: Vec<String> = (0..10).map(|n| format!("40.{n}.0.0/17")).collect();
    let both: Vec<&str> = names[..7].iter().copied().chain(["41.0.0.0/16"]).collect();
    assert_eq!(
        refusal(&before, &format!("[{}]", set(1, "Optimize", &both))),
        ""
    );
    let mut mixed = names.clone();
    mixed[9] = &halves[9];
    assert_eq!(
        refusal(&before, &format!("[{}]", set(1, "Optimize", &mixed))),
        ""
    );
    let before = list(&format!(
        "[{}]",
        set(
            1,
            "Optimize",
            &["40.96.0.0/13", "1.0.0.0/24", "1.0.1.0/24", "1.0.2.0/24"]
        )
    ));
    let less = format!(
        "[{}]",
        set(1, "Optimize", &["1.0.0.0/24", "1.0.1.0/24", "1.0.2.0/24"])
    );
    assert!(refusal(&before, &less).contains("% of the IPv4 addresses"));
}

#[test]
fn long_prefixes_count_as_their_networks() {
    let before = list(&format!(
        "[{}]",
        set(1, "Optimize", &["2603:1006::/40", "2620:1ec:4::/64"])
    ));
    let longer = ["2603:1006::/40", "2620:1ec:4::1/128", "2620:1ec:4::2/128"];
    let new = list(&format!("[{}]", set(1, "Optimize", &longer)));
    // One of two prefixes is gone, but no address.
    assert_eq!(judge().judge(&before, &new).refusal(), "");
}

#[test]
fn what_other_categories_lose_is_said_only() {
    let optimize = set(1, "Optimize", &["40.96.0.0/13"]);
    let before = list(&format!(
        "[{optimize},{}]",
        set(2, "Allow", &["52.0.0.0/10"])
    ));
    let judgement = judge().judge(&before, &list(&format!("[{optimize}]")));
    assert!(judgement.is_passed(), "{judgement:?}");
    let said = judgement.findings[0].to_string();
    assert_eq!(
        said,
        "89 % of the IPv4 addresses of all sets (4194304 of 4718592 IPv4 addresses) are gone at once"
    );
}

#[test]
fn media_that_loses_its_ports_is_refused() {
    let media = |id: u32, ports: &str, prefix: &str| {
        format!(r#"{{"id":{id},"ips":["{prefix}"],{ports},"category":"Optimize"}}"#)
    };
    let mail = media(1, r#""tcpPorts":"80,443","udpPorts":"443""#, "40.64.0.0/10");
    let calls = |ports: &str| media(11, ports, "52.112.0.0/14");
    let before = list(&format!("[{mail},{}]", calls(r#""udpPorts":"3478-3481""#)));
    for (row, part) in [
        (String::new(), "endpoint set 11: 100 % of what it steered"),
        (calls(r#""udpPorts":"""#), "endpoint set 11: 100 % of"),
        (
            calls(r#""udpPorts":"3478-65535""#),
            "endpoint set 11: has UDP 3478-65535, where",
        ),
        (
            calls(r#""tcpPorts":"22""#),
            "endpoint set 11: has TCP 22, where",
        ),
    ] {
        let rows = [mail.clone(), row]
            .into_iter()
            .filter(|row| !row.is_empty());
        let rows: Vec<String> = rows.collect();
        let text = refusal(&before, &format!("[{}]", rows.join(",")));
        assert!(text.contains(part), "{part}: {text}");
    }
    for lost in ["3478", "3479-3481", "443"] {
        let text = refusal(
            &before,
            &format!("[{mail},{}]", calls(&format!(r#""udpPorts":"{lost}""#))),
        );
        assert!(text.contains("endpoint set 11: "), "{lost}: {text}");
    }
    let fewer = calls(r#""udpPorts":"3478-3480""#);
    assert_eq!(refusal(&before, &format!("[{mail},{fewer}]")), "");
    // What it had itself, and what another set has taken over.
    let quic = media(
        11,
        r#""tcpPorts":"443","udpPorts":"443,3478-3481""#,
        "52.112.0.0/14",
    );
    assert_eq!(refusal(&before, &format!("[{mail},{quic}]")), "");
    let renamed = media(51, r#""udpPorts":"3478-3481""#, "52.112.0.0/14");
    assert_eq!(refusal(&before, &format!("[{mail},{renamed}]")), "");
}

#[test]
fn a_list_that_steers_the_internet_is_refused() {
    let before = list(&format!("[{}]", set(1, "Optimize", &["40.96.0.0/13"])));
    let tenths: Vec<String> = (1..=55).map(|n| format!("{}.64.0.0/10", n + 10)).collect();
    let tenths = tenths.iter().map(String::as_str);
    let much: Vec<&str> = ["40.96.0.0/13"].into_iter().chain(tenths).collect();
    let text = refusal(&before, &format!("[{}]", set(1, "Optimize", &much)));
    assert!(
        text.contains("what is steered grows from 524288 to"),
        "{text}"
    );
    let more = ["40.96.0.0/13", "52.96.0.0/12"];
    assert_eq!(
        refusal(&before, &format!("[{}]", set(1, "Optimize", &more))),
        ""
    );
}

#[test]
fn many_moves_to_optimize_are_refused() {
    let list_of = |category: &str| {
        let others = (2..=4).map(|id| set(id, category, &["41.0.0.0/16"]));
        let sets = [set(1, "Optimize", &["40.96.0.0/13"])]
            .into_iter()
            .chain(others);
        format!("[{}]", sets.collect::<Vec<_>>().join(","))
    };
    let text = refusal(&list(&list_of("Allow")), &list_of("Optimize"));
    assert_eq!(
        text,
        "3 sets have moved to category Optimize, or another one that is steered, at once, more than 2"
    );
}

#[test]
fn a_version_after_which_none_can_come_is_refused() {
    let before = list(&format!("[{}]", set(1, "Optimize", &["40.96.0.0/13"])));
    for (version, is_plain) in [
        ("2026033100", true),
        ("2018063000", true),
        ("9999999999", false),
        ("2026130100", false),
        ("2026023000", false),
        ("2098010100", false),
        ("20260331000", false),
        ("latest", false),
    ] {
        let mut new = before.clone();
        new.version = Some(version.to_owned());
        let judgement = judge().judge(&before, &new);
        assert_eq!(judgement.is_passed(), is_plain, "{version}: {judgement:?}");
    }
}

#[test]
fn moves_are_called_out_and_older_versions_refused() {
    let mut before = list(&format!(
        "[{}, {}]",
        set(1, "Optimize", &["40.96.0.0/13"]),
        set(2, "Allow", &["41.0.0.0/16"])
    ));
    let mut new = list(&format!(
        "[{}, {}]",
        set(1, "Optimize", &["40.96.0.0/13"]),
        set(2, "Optimize", &["41.0.0.0/16"])
    ));
    let judgement = judge().judge(&before, &new);
    assert!(judgement.is_passed());
    assert_eq!(
        judgement.findings[0].to_string(),
        "endpoint set 2: has moved from category Allow to Optimize"
    );
    before.version = Some("2026033100".to_owned());
    new.version = Some("2026022700".to_owned());
    assert!(
        judge()
            .judge(&before, &new)
            .refusal()
            .contains("older than 2026033100")
    );
    let gone = refusal(
        &before,
        &format!("[{}]", set(1, "Allow", &["40.96.0.0/13"])),
    );
    assert!(gone.contains("no usable set is steered any more"), "{gone}");
}

#[test]
fn what_is_not_known_to_be_microsofts_is_refused_where_it_is_steered() {
    let optimize = set(1, "Optimize", &["40.96.0.0/13", "9.9.9.0/24"]);
    let before = list(&format!(
        "[{optimize},{}]",
        set(2, "Allow", &["9.7.7.0/24"])
    ));
    let with = |more: &[&str]| {
        let prefixes: Vec<&str> = ["40.96.0.0/13", "9.9.9.0/24"]
            .iter()
            .chain(more)
            .copied()
            .collect();
        let rows = format!(
            "[{},{}]",
            set(1, "Optimize", &prefixes),
            set(2, "Allow", &["9.7.7.0/24"])
        );
        judge().judge(&before, &list(&rows))
    };
    for known in [
        "52.112.0.0/14",
        "9.9.9.0/25",
        "9.7.7.0/25",
        "2603:1063::/38",
    ] {
        assert_eq!(with(&[known]).refusal(), "", "{known}");
    }
    for foreign in [
        "8.8.8.0/24",
        "9.9.8.0/24",
        "9.7.0.0/24",
        "185.1.2.3/32",
        "2a00:1450::/32",
    ] {
        let refusal = with(&[foreign]).refusal();
        let expected = format!("endpoint set 1: {foreign} is in no network that");
        assert!(refusal.starts_with(&expected), "{refusal}");
    }
    // Where it is not steered it is told of only.
    let rows = format!(
        "[{optimize},{}]",
        set(2, "Allow", &["9.7.7.0/24", "8.8.8.0/24"])
    );
    let judgement = judge().judge(&before, &list(&rows));
    assert!(judgement.is_passed());
    assert_eq!(judgement.findings.len(), 1, "{judgement:?}");
    // A policy may steer it.
    let of_all = judge().steering(Arc::new(|_| true));
    assert!(!of_all.judge(&before, &list(&rows)).is_passed());
}

#[test]
fn damage_counts_where_something_is_steered() {
    let rows = |more: &str| {
        format!(
            r#"[{},{{"id":2,"ips":["13.107.6.0/24"],"tcpPorts":"443","category":"Allow"}}{more}]"#,
            set(1, "Optimize", &["40.96.0.0/13"])
        )
    };
    let before = list(&rows(""));
    for harmless in [
        ",null",
        r#",{"id":9,"ips":7}"#,
        r#",{"id":2,"required":"x"}"#,
    ] {
        let judgement = judge().judge(&before, &list(&rows(harmless)));
        assert!(judgement.is_passed(), "{harmless}: {judgement:?}");
        assert_eq!(judgement.findings.len(), 1, "{judgement:?}");
    }
    for bad in [
        r#",{"id":1,"required":"x"}"#,
        r#",{"id":3,"ips":["40.104.0.0/15","x"],"tcpPorts":"443","category":"Optimize"}"#,
        r#",{"id":2,"ips":["13.107.7.0/24"],"tcpPorts":"443","category":"Allow"}"#,
    ] {
        assert!(
            !judge().judge(&before, &list(&rows(bad))).is_passed(),
            "{bad}"
        );
    }
}

#[test]
fn findings_are_counted_and_refusals_do_not_drown() {
    let before = list(&format!("[{}]", set(1, "Optimize", &["40.96.0.0/13"])));
    let strange: Vec<String> = (0..250).map(|n| format!("9.9.{n}.0/24")).collect();
    let strange: Vec<&str> = strange.iter().map(String::as_str).collect();
    let rows = format!(
        "[{},{}]",
        set(2, "Allow", &strange),
        set(1, "Optimize", &["40.96.0.0/13", "10.0.0.0/16"])
    );
    let judgement = judge().judge(&before, &list(&rows));
    assert_eq!(
        (judgement.findings.len(), judgement.more),
        (MAX_FINDINGS, 151)
    );
    assert!(
        judgement.refusal().contains("10.0.0.0/8"),
        "{}",
        judgement.refusal()
    );
}

#[test]
fn a_set_that_stays_keeps_what_it_is_for() {
    let row = |id: u32, tcp: &str, udp: &str, prefixes: &[&str]| {
        format!(
            r#"{{"id":{id},"ips":{prefixes:?},"tcpPorts":"{tcp}","udpPorts":"{udp}","category":"Optimize"}}"#
        )
    };
    let mail = |tcp: &str, udp: &str| row(1, tcp, udp, &["40.64.0.0/10"]);
    let calls = row(11, "", "3478-3481", &["52.112.0.0/14", "52.120.0.0/14"]);
    let before = list(&format!("[{},{calls}]", mail("80,443", "443")));
    let small = row(11, "", "3478-3481", &["52.112.0.7/32"]);
    let swapped = row(1, "80,443", "443", &["52.112.0.0/14", "52.120.0.0/14"]);
    for (rows, id) in [
        (format!("{},{calls}", mail("80", "")), 1),
        (format!("{},{calls}", mail("80", "443")), 1),
        (format!("{},{small}", mail("80,443", "443")), 11),
        (
            format!("{swapped},{}", row(11, "", "3478-3481", &["40.64.0.0/10"])),
            1,
        ),
    ] {
        let text = refusal(&before, &format!("[{rows}]"));
        assert!(
            text.contains(&format!("endpoint set {id}: ")),
            "{rows}: {text}"
        );
    }
    // Without HTTP, without QUIC, and at other addresses.
    let elsewhere = row(11, "", "3478-3481", &["52.124.0.0/14", "52.116.0.0/14"]);
    for rows in [
        format!("{},{calls}", mail("443", "443")),
        format!("{},{calls}", mail("443", "")),
        format!("{},{elsewhere}", mail("80,443", "443")),
    ] {
        assert_eq!(refusal(&before, &format!("[{rows}]")), "", "{rows}");
    }
}

#[test]
fn sets_that_move_under_other_ids_are_moves_and_sign_in_is_left_alone() {
    let others = |category: &str, first: u32| -> String {
        let sets = (0..4).map(|n| set(first + n, category, &[&format!("20.{n}.0.0/24")]));
        sets.collect::<Vec<_>>().join(",")
    };
    let optimize = set(1, "Optimize", &["40.96.0.0/13"]);
    let sign_in = r#"{"id":56,"ips":["20.190.128.0/18"],"tcpPorts":"443","category":"Allow"}"#;
    let before = list(&format!("[{optimize},{},{sign_in}]", others("Allow", 100)));
    let text = refusal(
        &before,
        &format!("[{optimize},{},{sign_in}]", others("Optimize", 200)),
    );
    assert!(text.starts_with("4 sets have moved"), "{text}");
    let with = set(1, "Optimize", &["40.96.0.0/13", "20.190.128.0/18"]);
    let text = refusal(
        &before,
        &format!("[{with},{},{sign_in}]", others("Allow", 100)),
    );
    assert!(
        text.contains("where users sign in would be steered"),
        "{text}"
    );
}
