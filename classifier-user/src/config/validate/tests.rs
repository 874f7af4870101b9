//! Tests of refused configurations and their messages.

use super::super::parse;

const BASE: &str = "[[lan]]\ninterface = \"lan\"\n[egress.local]\ninterface = \"inet\"\n";

fn message(text: &str) -> String {
    parse(text, "c").unwrap_err().to_string()
}

#[test]
fn what_is_missing_or_contradicts_itself_is_refused() {
    assert!(parse(BASE, "c").is_ok());
    assert!(message("").contains("no [[lan]]"));
    assert!(message("[[lan]]\ninterface = \"lan\"").contains("no [egress.NAME]"));
    assert!(message(&BASE.replace("inet", "lan")).contains("both a [[lan]]"));
    assert!(message(&BASE.replace("\"lan\"", "\"a b\"")).contains("no interface name"));
    assert!(message(&format!("{BASE}gateway = \"224.0.0.1\"")).contains("unicast"));
    assert!(message(&format!("{BASE}[list]\ninstance = \"germany\"")).contains("no instance"));
    assert!(message(&format!("{BASE}[[lan]]\ninterface = \"lan\"")).contains("twice"));
}

#[test]
fn every_check_says_what_is_wrong() {
    let actions: String = (0..33)
        .map(|n| {
            format!(
                "[[policy]]\nsets = {n}\naction = {{ local = {}, b = 1 }}\n",
                n + 1
            )
        })
        .collect();
    let many: String = (0..17)
        .map(|n| format!("[egress.e{n}]\ninterface = \"e{n}\"\n"))
        .collect();
    let rule = |more: &str| format!("[[policy]]\ncategory = \"optimize\"\n{more}\n");
    let cases = [
        (
            "[list]\ninstance = [\"china\", \"China\"]".to_owned(),
            "names an instance twice",
        ),
        (
            "[list]\ninstance = []".to_owned(),
            "list.instance names no instance",
        ),
        (
            "[list]\ninstance = [\"china\", \"worldwide\"]\nfile = \"a\"".to_owned(),
            "a list in a file is of one instance; list.instance names several",
        ),
        (
            "[list]\nfile = \"a\"\nsource = \"builtin\"".to_owned(),
            "list.file and list.source are both given",
        ),
        (
            "[list]\ninterval = \"10m\"".to_owned(),
            "is too short: Microsoft asks for one hour or more",
        ),
        (
            "[list]\nsource = \"HTTP://me:pw@mirror/lists?token=1\"".to_owned(),
            "list.source = \"HTTP://***@mirror/lists?***\" is without TLS",
        ),
        (
            "[list]\nkeep = 1".to_owned(),
            "leaves nothing to go back to",
        ),
        (
            "[list]\ntenant = \"a.b\"".to_owned(),
            "is no tenant name: letters, digits",
        ),
        (
            "[list]\nservice_areas = [\"Teams&NoIPv6=true\"]".to_owned(),
            "\"Teams&NoIPv6=true\" is no service area",
        ),
        (
            "[list]\nsource = \"ftp://mirror/list\"".to_owned(),
            "is a URL that is not https:// or http://",
        ),
        (
            "[list]\nproxy = \"htp://proxy:3128\"".to_owned(),
            "not by htp://",
        ),
        (
            "[list]\nsource = \"HTTPS://Endpoints.Office.com\"\ninterval = \"5m\"".to_owned(),
            "Microsoft asks for one hour or more",
        ),
        (
            rule("name = \"a\\u001b[2J\"\naction = \"pass\""),
            "[[policy]] name = \"a\\u{1b}[2J\" has characters that do not show",
        ),
        (
            "[[custom]]\nname = \"a\\nb\"\nprefixes = []".to_owned(),
            "[[custom]] name = \"a\\u{a}b\" has characters",
        ),
        ("[list]\ngrace = \"7\"".to_owned(), "is no duration, as in"),
        (
            "[[custom]]\nname = \"\"\nprefixes = []".to_owned(),
            "needs a name of its own",
        ),
        (
            "[[custom]]\nname = \"a\"\nprefixes = [\"0.0.0.0/0\"]".to_owned(),
            "covers every address or has address bits beyond its prefix length",
        ),
        (
            rule("name = \"a\"\naction = \"pass\"") + &rule("name = \"a\"\naction = \"pass\""),
            "[[policy]] \"a\" is given twice",
        ),
        (rule("action = []"), "action names no egress"),
        (
            rule("action = [\"local\", \"local\"]"),
            "action names egress \"local\" twice",
        ),
        (
            rule("action = { local = 0 }"),
            "weights are numbers from 1 to 1000",
        ),
        (
            format!("[egress.b]\ninterface = \"b\"\n{actions}"),
            "different actions besides",
        ),
        (
            "[health]\ninterval = \"1ms\"".to_owned(),
            "health.interval = \"1ms\" is too short",
        ),
        ("[pinning]\nsize = 7".to_owned(), "flows can be remembered"),
        (
            "[assess]\ntargets = \"icmp:192.0.2.1\"".to_owned(),
            "icmp:192.0.2.1 cannot be assessed; there are",
        ),
        (
            "[assess]\ntargets = \"tls:192.0.2.1\"".to_owned(),
            "tls:192.0.2.1:443 has no name, so its certificate cannot be verified",
        ),
        (
            "[assess]\nstun = \"turn:a\"".to_owned(),
            "turn:a:3478 is not stun:HOST:PORT",
        ),
        (
            "[assess]\ndownload = \"contoso.sharepoint.com\"".to_owned(),
            "is no URL of a file, as in",
        ),
        (many, "egresses are given, 16 are possible"),
        (
            "[egress.pass]\ninterface = \"b\"".to_owned(),
            "is what rules say for the ordinary path; choose another name",
        ),
        (
            "[egress.\"a b\"]\ninterface = \"b\"".to_owned(),
            "names of egresses have no spaces, commas or",
        ),
        (
            "[egress.b]\ninterface = \"b\"\nmode = \"redirect\"\nmasquerade = true\n[egress.c]\ninterface = \"b\"".to_owned(),
            "no other egress can have its interface \"b\"",
        ),
        (
            "[egress.b]\ninterface = \"b\"\nmode = \"redirect\"\nskip_dnat = true".to_owned(),
            "sends packets past netfilter, so there is no DNAT to skip",
        ),
        (
            "[egress.b]\ninterface = \"b\"\nreturn = true".to_owned(),
            "return = true is for mode = \"redirect\"",
        ),
    ];
    for (text, part) in cases {
        let message = message(&format!("{BASE}{text}"));
        assert!(message.contains(part), "{text}: {message}");
    }
}

#[test]
fn numbers_that_clash_with_the_kernel_are_refused() {
    for (routing, part) in [
        ("mark_mask = 0", "five bits"),
        ("mark_mask = 0x0000000f", "five bits"),
        ("mark_mask = 0x00f000f0", "next to each other"),
        ("rule_priority = 0", "1 to 32765"),
        ("rule_priority = 32766", "1 to 32765"),
        ("table = 250", "kernel's own"),
        ("table = 0", "kernel's own"),
    ] {
        let text = format!("{BASE}[routing]\n{routing}");
        assert!(
            message(&text).contains(part),
            "{routing}: {}",
            message(&text)
        );
    }
}
