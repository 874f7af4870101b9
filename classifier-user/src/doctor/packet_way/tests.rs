//! Packets on their way through rules as `nft` prints them.

use serde_json::json;

use super::*;

fn packet() -> Packet {
    Packet {
        from: "lan".to_owned(),
        to: "inet".to_owned(),
        source: "10.1.0.2".parse().unwrap(),
        destination: "52.98.1.1".parse().unwrap(),
        protocol: "tcp",
        source_port: 50_004,
        port: 443,
        mark: 0x100_0000,
        state: "new",
        is_answer: false,
    }
}

fn is(left: Value, right: Value) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right } })
}

fn meta(key: &str, right: Value) -> Value {
    is(json!({ "meta": { "key": key } }), right)
}

fn field(protocol: &str, field: &str, right: Value) -> Value {
    let payload = json!({ "payload": { "protocol": protocol, "field": field } });
    is(payload, right)
}

/// The fate in a forward chain that drops by its policy, with these rules and more entries.
fn fate(rules: &[Value], more: &[Value]) -> Fate {
    fate_of(&packet(), rules, more)
}

fn fate_of(packet: &Packet, rules: &[Value], more: &[Value]) -> Fate {
    let mut entries = vec![json!({ "chain": {
        "family": "inet", "table": "fw", "name": "forward",
        "type": "filter", "hook": "forward", "prio": 0, "policy": "drop",
    } })];
    let rule = |expressions: &Value| json!({ "rule": { "family": "inet", "table": "fw", "chain": "forward", "expr": expressions } });
    entries.extend(rules.iter().map(rule));
    entries.extend(more.iter().cloned());
    Rules::new(&json!({ "nftables": entries }), "").fate(packet, "filter", "forward")
}

const ACCEPT: fn() -> Value = || json!({ "accept": null });

fn passes(expression: Value) -> bool {
    let fate = fate(&[json!([expression, ACCEPT()])], &[]);
    assert!(fate.is_certain);
    fate.dropped.is_none()
}

#[test]
fn the_policy_drops_what_no_rule_accepts() {
    let dropped = fate(&[], &[]).dropped.unwrap();
    assert_eq!(dropped.to_string(), "the policy of inet fw forward");
    assert!(!passes(meta("oifname", json!("wan"))));
    assert!(passes(meta("oifname", json!("inet"))));
    assert!(passes(meta("oifname", json!("in*"))));
    assert!(passes(meta("oifname", json!({ "set": ["wan", "inet"] }))));
    assert!(!passes(meta("l4proto", json!({ "set": ["udp", "icmp"] }))));
    assert!(passes(meta("nfproto", json!("ipv4"))));
    assert!(!passes(field("ip6", "saddr", json!("fd00::1"))));
    assert!(passes(field(
        "ip",
        "saddr",
        json!({ "prefix": { "addr": "10.0.0.0", "len": 8 } })
    )));
    assert!(!passes(field(
        "ip",
        "daddr",
        json!({ "range": ["52.0.0.0", "52.97.255.255"] })
    )));
    assert!(passes(field(
        "tcp",
        "dport",
        json!({ "set": [80, { "range": [440, 450] }] })
    )));
    assert!(!passes(field("udp", "dport", json!(443))));
    let mark = json!({ "&": [{ "meta": { "key": "mark" } }, 0x1f00_0000] });
    assert!(passes(is(mark, json!(0x100_0000))));
    let state = |states: Value| json!({ "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": states } });
    assert!(!passes(state(json!(["established", "related"]))));
    assert!(passes(state(json!(["established", "new"]))));
    let differs = json!({ "match": { "op": "!=", "left": { "meta": { "key": "iifname" } }, "right": "lan" } });
    assert!(!passes(differs));
}

#[test]
fn named_sets_maps_and_chains_are_followed() {
    let set = json!({ "set": { "family": "inet", "table": "fw", "name": "outside", "elem": ["wan", "inet"] } });
    let by_set = json!([meta("oifname", json!("@outside")), ACCEPT()]);
    assert_eq!(fate(std::slice::from_ref(&by_set), &[set]).dropped, None);
    // Nobody knows a set that is not there.
    assert!(!fate(&[by_set], &[]).is_certain);
    let chain = json!({ "chain": { "family": "inet", "table": "fw", "name": "zone" } });
    let of_zone = |expressions: Value| json!({ "rule": { "family": "inet", "table": "fw", "chain": "zone", "expr": expressions } });
    let map = json!([{ "vmap": { "key": { "meta": { "key": "iifname" } },
        "data": { "set": [["wan", { "drop": null }], ["lan", { "jump": { "target": "zone" } }]] } } }]);
    let accept = of_zone(json!([ACCEPT()]));
    let reject = of_zone(json!([field("tcp", "dport", json!(443)), { "reject": null }]));
    assert_eq!(
        fate(std::slice::from_ref(&map), &[chain.clone(), accept]).dropped,
        None
    );
    let dropped = fate(std::slice::from_ref(&map), &[chain.clone(), reject]).dropped;
    assert_eq!(dropped.unwrap().to_string(), "a rule in inet fw zone");
    // Back from the chain, the next rule decides.
    let back = of_zone(json!([{ "return": null }]));
    let rules = [map, json!([ACCEPT()])];
    assert_eq!(fate(&rules, &[chain.clone(), back]).dropped, None);
    // Chains that call each other end somewhere.
    let round = of_zone(json!([{ "jump": { "target": "zone" } }]));
    assert!(fate(&rules[..1], &[chain, round]).dropped.is_some());
    let both =
        json!({ "concat": [{ "meta": { "key": "iifname" } }, { "meta": { "key": "oifname" } }] });
    let pairs = |to: &str| is(both.clone(), json!({ "set": [{ "concat": ["lan", to] }] }));
    assert!(passes(pairs("inet")) && !passes(pairs("wan")));
}

#[test]
fn only_what_may_let_it_through_makes_a_drop_uncertain() {
    let unknown = || json!({ "xt": { "type": "match", "name": "x" } });
    let queue = json!({ "queue": { "num": 0 } });
    let by_group = json!({ "vmap": { "key": { "meta": { "key": "iifgroup" } }, "data": { "set": [[0, ACCEPT()]] } } });
    let own_mark = json!([{ "mangle": { "key": { "ct": { "key": "mark" } }, "value": 5 } }]);
    let ct_mark = json!([is(json!({ "ct": { "key": "mark" } }), json!(5)), ACCEPT()]);
    for rules in [
        vec![json!([unknown(), ACCEPT()])],
        vec![json!([queue])],
        vec![json!([by_group])],
        vec![own_mark, ct_mark.clone()],
    ] {
        let fate = fate(&rules, &[]);
        assert!(fate.dropped.is_some() && !fate.is_certain, "{rules:?}");
    }
    let log = json!({ "xt": { "type": "target", "name": "LOG" } });
    let comment = json!({ "xt": { "type": "match", "name": "comment" } });
    for rules in [
        vec![json!([unknown(), { "counter": null }, log])],
        vec![json!([unknown(), { "drop": null }])],
        vec![json!([meta("oifname", json!("wan")), unknown(), ACCEPT()])],
        vec![json!([comment, { "xt": { "type": "target", "name": "DROP" } }])],
        vec![ct_mark],
    ] {
        let fate = fate(&rules, &[]);
        assert!(fate.dropped.is_some() && fate.is_certain, "{rules:?}");
    }
    // The first packet is within every limit.
    let limit =
        |over: bool| json!([{ "limit": { "rate": 5, "per": "second", "inv": over } }, ACCEPT()]);
    assert_eq!(fate(&[limit(false)], &[]).dropped, None);
    assert!(fate(&[limit(true)], &[]).dropped.is_some());
}

#[test]
fn what_a_packet_does_not_have_matches_nothing_whatever_is_compared() {
    let differs = |left: Value, right: Value| json!({ "match": { "op": "!=", "left": left, "right": right } });
    let field = |protocol: &str, field: &str| json!({ "payload": { "protocol": protocol, "field": field } });
    for condition in [
        differs(field("icmp", "type"), json!("echo-request")),
        differs(
            field("ip6", "saddr"),
            json!({ "prefix": { "addr": "fd00::", "len": 64 } }),
        ),
        differs(
            field("udp", "dport"),
            json!({ "set": [443, { "range": [3478, 3481] }] }),
        ),
        differs(field("udp", "dport"), json!({ "set": [] })),
    ] {
        assert!(!passes(condition));
    }
    assert!(passes(differs(
        field("tcp", "dport"),
        json!({ "set": [80, 22] })
    )));
}

#[test]
fn states_that_iptables_asks_for_are_read_from_the_text() {
    let json = |verdict: &str| {
        json!({ "nftables": [
            { "chain": { "family": "ip", "table": "filter", "name": "FORWARD",
                "type": "filter", "hook": "forward", "prio": 0, "policy": "drop" } },
            { "rule": { "family": "ip", "table": "filter", "chain": "FORWARD", "handle": 7,
                "expr": [{ "xt": { "type": "match", "name": "conntrack" } }, { verdict: null }] } },
        ] })
    };
    let text = |states: &str| {
        format!(
            "table ip filter {{ # handle 1\n\tchain FORWARD {{ # handle 1\n\t\tct state {states} counter accept # handle 7\n\t}}\n}}\n"
        )
    };
    for (states, passes) in [
        ("related,established", false),
        ("new", true),
        ("! invalid ", true),
        ("! new", false),
    ] {
        let json = json("accept");
        let fate = Rules::new(&json, &text(states)).fate(&packet(), "filter", "forward");
        assert_eq!(
            (fate.dropped.is_none(), fate.is_certain),
            (passes, true),
            "{states}"
        );
    }
    let json = json("accept");
    assert!(
        !Rules::new(&json, "")
            .fate(&packet(), "filter", "forward")
            .is_certain
    );
}

#[test]
fn sets_that_packets_fill_tables_that_sleep_and_long_walks_are_not_judged() {
    let seen =
        json!({ "set": { "family": "inet", "table": "fw", "name": "seen", "flags": ["dynamic"] } });
    let rule = json!([field("ip", "saddr", json!("@seen")), ACCEPT()]);
    assert!(!fate(&[rule], &[seen]).is_certain);
    let dormant = json!({ "table": { "family": "inet", "name": "fw", "flags": "dormant" } });
    assert_eq!(fate(&[], &[dormant]).dropped, None);
    let chains = (0..2000).flat_map(|number| {
        let name = format!("c{number}");
        let next = json!([{ "jump": { "target": format!("c{}", number + 1) } }]);
        let more = json!([{ "jump": { "target": format!("c{}", number + 2) } }]);
        let rule = |expr: Value| json!({ "rule": { "family": "inet", "table": "fw", "chain": name, "expr": expr } });
        [json!({ "chain": { "family": "inet", "table": "fw", "name": name } }), rule(next), rule(more)]
    });
    let chains: Vec<Value> = chains.collect();
    let jumps: Vec<Value> = (0..1900)
        .map(|number| json!([{ "jump": { "target": format!("c{number}") } }]))
        .collect();
    assert!(!fate(&jumps, &chains).is_certain);
}

#[test]
fn sources_are_translated_by_the_rule_that_matches() {
    let nat = |rules: &[Value]| {
        let mut entries = vec![json!({ "chain": {
            "family": "ip", "table": "nat", "name": "post",
            "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept",
        } })];
        entries.extend(rules.iter().map(|expressions| {
            json!({ "rule": { "family": "ip", "table": "nat", "chain": "post", "expr": expressions } })
        }));
        let nft = json!({ "nftables": entries });
        let fate = Rules::new(&nft, "").fate(&packet(), "nat", "postrouting");
        assert!(fate.is_certain && fate.dropped.is_none());
        fate.translated
    };
    let out = |name: &str| meta("oifname", json!(name));
    assert_eq!(nat(&[]), None);
    assert_eq!(nat(&[json!([out("wan"), { "masquerade": null }])]), None);
    assert_eq!(
        nat(&[json!([out("inet"), { "masquerade": { "flags": "random" } }])]),
        Some(Translated::Masquerade)
    );
    let snat = json!([out("inet"), { "snat": { "addr": "192.0.2.1" } }]);
    assert_eq!(nat(&[snat]), Some(Translated::To("192.0.2.1".parse().ok())));
    let xt = json!([out("inet"), { "xt": { "type": "target", "name": "MASQUERADE" } }]);
    assert_eq!(nat(&[xt]), Some(Translated::Masquerade));
}
