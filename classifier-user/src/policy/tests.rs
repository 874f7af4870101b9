//! Tests of the sets that rules select.

use std::collections::BTreeMap;

use super::*;
use crate::config::parse;
use crate::list::{SetKey, embedded};
use crate::ruleset::{Ruleset, Slots};

const BASE: &str = "[[lan]]\ninterface = \"lan\"\n[[lan]]\ninterface = \"guests\"\n\
                    [egress.local]\ninterface = \"inet\"\n[egress.lte]\ninterface = \"wwan0\"\n";

fn policy(rules: &str) -> Policy {
    let config = parse(&format!("{BASE}{rules}"), "c").unwrap();
    let preferences = BTreeMap::from([("local".to_owned(), 0), ("lte".to_owned(), 1)]);
    let build = Build {
        config: &config,
        preferences: &preferences,
    };
    build.policy().unwrap()
}

/// The ids of the Worldwide sets that are steered to each egress.
fn steered(policy: &Policy, egress: u8) -> Vec<u32> {
    let list = embedded(Instance::Worldwide);
    let sets = list.sets.iter().filter(|set| {
        let choices = policy.choices(set, Timestamp::default());
        choices.first().map(|choice| choice.action) == Some(Action::Steer(egress))
    });
    sets.filter_map(|set| set.key.id()).collect()
}

#[test]
fn without_rules_optimize_goes_local() {
    assert_eq!(steered(&policy(""), 0), [1, 11, 31]);
}

#[test]
fn the_first_rule_that_matches_decides() {
    let policy = policy(
        "[[policy]]\nservice_area = \"skype\"\naction = \"lte\"\n\
         [[policy]]\nsets = [2]\naction = \"pass\"\n\
         [[policy]]\ncategory = [\"optimize\", \"allow\"]\nservice_area = \"EXCHANGE\"\naction = \"local\"",
    );
    assert_eq!(steered(&policy, 1), [11, 12]);
    assert_eq!(steered(&policy, 0), [1, 9, 10]);
    assert_eq!(policy.rules[1].name, "rule 2");
}

#[test]
fn sets_are_chosen_by_what_they_are() {
    for (selector, expected) in [
        ("instance = \"china\"", vec![]),
        ("instance = [\"China\", \"worldwide\"]\nsets = [1]", vec![1]),
        ("required = true\ncategory = \"optimize\"", vec![1, 11, 31]),
        ("required = false", vec![2]),
        (
            "express_route = true\nservice_area = \"Skype\"",
            vec![11, 12],
        ),
        ("custom = \"own\"", vec![]),
        ("custom = \"own\"\nsets = [9]", vec![9]),
    ] {
        let custom = "[[custom]]\nname = \"own\"\nprefixes = [\"192.0.2.0/24\"]\n";
        let policy = policy(&format!(
            "{custom}[[policy]]\n{selector}\naction = \"local\""
        ));
        assert_eq!(steered(&policy, 0), expected, "{selector}");
    }
}

#[test]
fn sign_in_is_steered_only_by_its_number() {
    let all = policy("[[policy]]\ncategory = \"allow\"\naction = \"local\"");
    assert!(!steered(&all, 0).contains(&56));
    assert!(steered(&all, 0).contains(&46));
    let list = embedded(Instance::Worldwide);
    assert!(
        sign_in_notes(&all, &list.sets)[0].contains("does not steer endpoint set Worldwide 56")
    );
    let named = policy("[[policy]]\nsets = [56]\naction = \"local\"");
    assert_eq!(steered(&named, 0), [56]);
    assert!(sign_in_notes(&named, &list.sets)[0].contains("tenant restrictions"));
    assert!(sign_in_notes(&policy(""), &list.sets).is_empty());
}

#[test]
fn conditions_are_as_configured() {
    let policy = policy(
        "[[policy]]\nsources = [\"10.2.0.0/16\", \"10.1.0.0/16\"]\nlan = \"guests\"\nvlan = [10, 20]\n\
         share = \"50 %\"\nshadow = true\ngrace = \"1 day\"\naction = \"local\"\n\
         [[policy]]\nsources = [\"10.1.0.0/16\", \"10.2.0.0/16\"]\nports = \"tcp 443\"\naction = \"local\"",
    );
    assert_eq!(policy.sources.len(), 1, "the same sources are one group");
    let [first, second] = policy.rules[0].conditions[..] else {
        panic!("a condition for each VLAN");
    };
    assert_eq!(
        (first.groups, first.lans, first.vlan, first.share),
        (1, 2, 10, 32_767)
    );
    assert_eq!(second.vlan, 20);
    assert!(policy.rules[0].shadow);
    assert_eq!(policy.rules[0].grace, Duration::from_secs(86_400));
    assert_eq!(policy.rules[1].ports.as_ref().unwrap().len(), 1);
    assert_eq!(policy.rules[1].grace, DEFAULT_GRACE);
}

#[test]
fn each_rule_keeps_what_is_withdrawn_for_its_own_time() {
    let policy = policy(
        "[[policy]]\nsets = [1]\ngrace = \"1 day\"\naction = \"lte\"\n[[policy]]\nsets = [1]\naction = \"local\"",
    );
    let since = Timestamp::from_seconds(1_000_000);
    let set = EndpointSet {
        withdrawn: Some(since),
        ..embedded(Instance::Worldwide).sets[0].clone()
    };
    let actions = |hours: u64| -> Vec<Action> {
        let now = since.after(Duration::from_secs(hours * 3600));
        policy
            .choices(&set, now)
            .iter()
            .map(|choice| choice.action)
            .collect()
    };
    assert_eq!(actions(23), [Action::Steer(1)]);
    assert_eq!(actions(24), [Action::Steer(0)]);
    assert_eq!(actions(7 * 24), []);
}

#[test]
fn a_custom_file_is_read_as_editors_save_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("own.txt");
    let rules = format!("[[custom]]\nname = \"own\"\nfile = {file:?}\n");
    let config = parse(&format!("{BASE}{rules}"), "c").unwrap();
    let text = "\u{feff}# ours\r\n198.51.100.0/24 ; one\r\n\r\n2001:db8::/48\r\n";
    let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for bytes in [text.as_bytes(), &units] {
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(custom_sets(&config).unwrap()[0].prefixes.len(), 2);
    }
    std::fs::write(&file, "198.51.100.7/24\n").unwrap();
    let error = format!("{:#}", custom_sets(&config).unwrap_err());
    assert!(
        error.contains("own.txt:1: ") && error.contains("the network is 198.51.100.0/24"),
        "{error}"
    );
}

#[test]
fn a_default_route_in_parts_is_refused() {
    let rules = "[[policy]]\ncategory = \"optimize\"\naction = \"local\"\n";
    let ruleset = |prefixes: &[&str]| {
        let set = EndpointSet {
            key: SetKey::published(Instance::Worldwide, 1),
            category: Category::Optimize,
            prefixes: prefixes
                .iter()
                .map(|prefix| prefix.parse().unwrap())
                .collect(),
            ..embedded(Instance::Worldwide).sets[0].clone()
        };
        Ruleset::new(
            [&set],
            &policy(rules),
            &mut Slots::default(),
            Timestamp::now(),
        )
    };
    assert!(ruleset(&["0.0.0.0/1", "128.0.0.0/2", "1.2.3.0/24"]).is_ok());
    for parts in [
        &["0.0.0.0/1", "128.0.0.0/1"][..],
        &["::/2", "4000::/2", "8000::/1", "10.0.0.0/8"],
    ] {
        let error = ruleset(parts).unwrap_err().to_string();
        assert!(error.contains("that is a default route"), "{error}");
    }
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    for (rule, part) in [
        ("action = \"nowhere\"", "there are: local, lte"),
        (
            "category = \"Optimise\"\naction = \"local\"",
            "there are: optimize",
        ),
        ("lan = \"eth7\"\naction = \"local\"", "no [[lan]] \"eth7\""),
        ("vlan = 4095\naction = \"local\"", "1 to 4094"),
        (
            "custom = \"none\"\naction = \"local\"",
            "no [[custom]] \"none\"",
        ),
        (
            "sources = [\"10.1.0.1/16\"]\naction = \"local\"",
            "beyond its prefix length",
        ),
        ("share = \"0 %\"\naction = \"local\"", "no share"),
        ("ports = \"443\"\naction = \"local\"", "tcp or udp"),
        ("instance = \"Germany\"\naction = \"local\"", "no instance"),
    ] {
        let error = parse(&format!("{BASE}[[policy]]\n{rule}"), "c")
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{rule}: {error}");
    }
}
