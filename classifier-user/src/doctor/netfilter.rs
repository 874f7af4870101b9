//! Rules of nftables and iptables that take steered packets away, or their mark.

use serde_json::Value;

use super::packet_way::Rules;
use super::{Finding, Level, forward};
use crate::config::{Config, EgressConfig, Mode};
use crate::links::Links;
use crate::nat;
use crate::ruleset::Ruleset;

pub(super) async fn examine(links: &Links, config: &Config, ruleset: &Ruleset) -> Vec<Finding> {
    match nat::ruleset().await {
        Ok(nft) => {
            // Only for what iptables has made.
            let text = if Rules::need_text(&nft) {
                nat::listing().await.unwrap_or_default()
            } else {
                String::new()
            };
            let walked = Rules::new(&nft, &text);
            let mut findings = forward::examine(links, config, ruleset, &walked).await;
            if (config.egress.values()).any(|egress| egress.mode == Mode::Route) {
                // Redirected packets do not come to netfilter.
                findings.extend(rules(&nft, config));
            }
            findings
        }
        Err(error) => vec![Finding::new(
            Level::Note,
            format!("the firewall's rules were not looked at: {error:#}"),
            "Install nftables to have them looked at, those of iptables too",
        )],
    }
}

/// The sections of those egresses in route mode of which something is so.
fn routed(config: &Config, is_so: impl Fn(&EgressConfig) -> bool) -> Vec<String> {
    (config.egress.iter())
        .filter(|(_, egress)| egress.mode == Mode::Route && is_so(egress))
        .map(|(name, _)| format!("[egress.{name}]"))
        .collect()
}

fn rules(ruleset: &Value, config: &Config) -> Vec<Finding> {
    let mask = config.routing.mark_mask;
    let reached = routed(config, |egress| !egress.skips_dnat());
    let own = format!("breakout-{}", config.routing.table);
    let all = ruleset["nftables"].as_array().into_iter().flatten();
    let mut findings = Vec::new();
    // Chains in which a rule before has let steered packets go.
    let mut spared: Vec<[&str; 3]> = Vec::new();
    for rule in all.filter_map(|entry| entry.get("rule")) {
        let text = |key: &str| rule[key].as_str().unwrap_or_default();
        let place = [text("family"), text("table"), text("chain")];
        let [family, table, chain] = place;
        let expressions = rule["expr"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        if table == own || spared.contains(&place) {
            continue;
        }
        if spares(expressions, mask) {
            spared.push(place);
            continue;
        }
        let at = format!("{family} {table} {chain}");
        if has(expressions, "", "MARK") || has(expressions, "", "CONNMARK") {
            // What it sets is told only by iptables itself.
            findings.push(Finding::new(
                Level::Note,
                format!("a rule of iptables in {at} sets marks; whether those are Breakout's bits ({mask:#x}) cannot be seen from here"),
                format!("Look at it with iptables-save: a mask that it gives (--set-xmark VALUE/MASK, --nfmask) must leave {mask:#x} out"),
            ));
        }
        if has(expressions, "tproxy", "TPROXY") {
            findings.push(Finding::new(
                Level::Error,
                format!(
                    "a rule in {at} gives packets to a transparent proxy (TPROXY), steered ones too"
                ),
                advice(place, expressions, mask, "mangle"),
            ));
        } else if !reached.is_empty()
            && (has(expressions, "redirect", "REDIRECT") || has(expressions, "dnat", "DNAT"))
        {
            findings.push(Finding::new(
                Level::Warning,
                format!("a rule in {at} changes destinations (REDIRECT or DNAT), of steered packets too where it matches them"),
                format!(
                    "Set skip_dnat = true in {}; or: {}",
                    reached.join(" and "),
                    advice(place, expressions, mask, "nat")
                ),
            ));
        }
        if expressions
            .iter()
            .any(|expression| overwrites(expression, mask))
            && !has(expressions, "tproxy", "TPROXY")
        {
            findings.push(Finding::new(
                Level::Warning,
                format!("a rule in {at} sets bits of the firewall mark that are Breakout's ({mask:#x})"),
                format!(
                    "Have it keep them, as in: meta mark set meta mark and {mask:#x} or VALUE; or set [routing] mark_mask to other bits"
                ),
            ));
        }
    }
    findings
}

/// Returns whether a rule has a statement of nftables, or the target of iptables that does the same.
fn has(expressions: &[Value], statement: &str, target: &str) -> bool {
    expressions.iter().any(|expression| {
        expression.get(statement).is_some()
            || expression["xt"]["type"] == "target" && expression["xt"]["name"] == target
    })
}

/// Returns whether a rule lets every packet go on whose mark has any of our bits.
fn spares(expressions: &[Value], mask: u32) -> bool {
    let is_effective = |expression: &&Value| {
        let idle = ["counter", "comment", "log"];
        !idle.iter().any(|name| expression.get(name).is_some())
    };
    let effective: Vec<&Value> = expressions.iter().filter(is_effective).collect();
    let [condition, verdict] = effective.as_slice() else {
        return false;
    };
    let compared = &condition["match"];
    let masked = &compared["left"]["&"];
    compared["op"] == "!="
        && compared["right"] == 0
        && masked[0]["meta"]["key"] == "mark"
        && masked[1]
            .as_u64()
            .is_some_and(|bits| bits & u64::from(mask) == u64::from(mask))
        && (verdict.get("accept").is_some() || verdict.get("return").is_some())
}

/// Returns whether an expression sets the mark without keeping our bits.
fn overwrites(expression: &Value, mask: u32) -> bool {
    let set = &expression["mangle"];
    if set["key"]["meta"]["key"] != "mark" {
        return false;
    }
    !keeps(&set["value"], mask)
}

/// Returns whether a value is the mark that there was, with our bits as they were.
fn keeps(value: &Value, mask: u32) -> bool {
    let is_mark = |value: &Value| value["meta"]["key"] == "mark";
    let bits = |value: &Value| value.as_u64();
    if is_mark(value) {
        return true;
    }
    for (operator, wanted) in [("|", 0), ("^", 0), ("&", mask)] {
        if let Some([left, right]) = value[operator].as_array().map(Vec::as_slice) {
            let is_harmless =
                bits(right).is_some_and(|bits| bits & u64::from(mask) == u64::from(wanted));
            return is_harmless && keeps(left, mask);
        }
    }
    false
}

/// A line that lets steered packets go on, ready to paste.
fn advice(
    [family, table, chain]: [&str; 3],
    expressions: &[Value],
    mask: u32,
    xt_table: &str,
) -> String {
    if expressions
        .iter()
        .any(|expression| expression.get("xt").is_some())
    {
        let command = if family == "ip6" {
            "ip6tables"
        } else {
            "iptables"
        };
        return format!(
            "{command} -t {xt_table} -I {chain} -m mark ! --mark 0/{mask:#x} -j ACCEPT"
        );
    }
    format!("nft insert rule {family} {table} {chain} meta mark and {mask:#x} != 0 accept")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::parse;

    const CONFIG: &str = "[[lan]]\ninterface = \"lan\"\n[egress.local]\ninterface = \"inet\"\n";

    fn found(rules_of_chain: &[Value], more: &str) -> Vec<Finding> {
        let config = parse(&format!("{CONFIG}{more}"), "c").unwrap();
        let entries: Vec<Value> = (rules_of_chain.iter())
            .map(|expr| json!({ "rule": { "family": "ip", "table": "proxy", "chain": "pre", "expr": expr } }))
            .collect();
        rules(&json!({ "nftables": entries }), &config)
    }

    fn set_mark(value: Value) -> Value {
        json!([{ "mangle": { "key": { "meta": { "key": "mark" } }, "value": value } }])
    }

    #[test]
    fn a_transparent_proxy_is_found_unless_it_spares_steered_packets() {
        let tproxy = json!([{ "tproxy": { "port": 3129 } }]);
        let findings = found(std::slice::from_ref(&tproxy), "");
        assert_eq!(
            findings[0].advice,
            "nft insert rule ip proxy pre meta mark and 0x1f000000 != 0 accept"
        );
        let spare = json!([
            { "match": { "op": "!=", "left": { "&": [{ "meta": { "key": "mark" } }, 0x1f00_0000] }, "right": 0 } },
            { "accept": null },
        ]);
        assert!(found(&[spare.clone(), tproxy.clone()], "").is_empty());
        // Rules of iptables always count.
        let mut counting = spare;
        counting
            .as_array_mut()
            .unwrap()
            .insert(1, json!({ "counter": { "packets": 0, "bytes": 0 } }));
        assert!(found(&[counting, tproxy], "").is_empty());
        let xt = json!([{ "xt": { "type": "target", "name": "TPROXY" } }]);
        assert!(
            found(&[xt], "")[0]
                .advice
                .starts_with("iptables -t mangle -I pre -m mark ! --mark 0/0x1f000000")
        );
        let redirect = json!([{ "redirect": { "port": 3129 } }]);
        assert!(
            found(std::slice::from_ref(&redirect), "")[0]
                .advice
                .contains("skip_dnat = true in [egress.local]")
        );
        assert!(found(&[redirect], "masquerade = true\n").is_empty());
    }

    #[test]
    fn what_iptables_marks_is_told() {
        let rule = json!([{ "counter": {} }, { "xt": { "type": "target", "name": "MARK" } }]);
        let findings = found(&[rule], "");
        assert_eq!((findings.len(), findings[0].level), (1, Level::Note));
    }

    #[test]
    fn rules_that_set_our_bits_are_found_and_others_are_not() {
        let mark = || json!({ "meta": { "key": "mark" } });
        let and = |mask: u32| json!({ "&": [mark(), mask] });
        assert_eq!(found(&[set_mark(json!(1))], "").len(), 1);
        assert_eq!(
            found(&[set_mark(json!({ "|": [mark(), 0x100_0000] }))], "").len(),
            1
        );
        assert_eq!(
            found(&[set_mark(json!({ "|": [and(0xffff_c0ff), 0x100] }))], "").len(),
            0
        );
        assert_eq!(
            found(
                &[set_mark(json!({ "^": [and(0xe0ff_ffff), 0x100_0100] }))],
                ""
            )
            .len(),
            1
        );
    }
}
