//! Our own nftables table: masquerading of steered packets, and what keeps them from DNAT and REDIRECT rules.
//!
//! The kernel asks chains of type `nat` in the order of their priorities until one has decided; a packet whose destination
//! has been translated to itself is therefore not redirected to a proxy by a later one (`nf_nat_inet_fn`, Linux 4.18).

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::tool;

/// Just before `dstnat` (-100) and `srcnat` (100), where everybody else's chains are.
const BEFORE_DNAT: i32 = -101;
const BEFORE_SNAT: i32 = 99;

/// Behind everybody's translation.
const BEHIND_SNAT: i32 = 150;
/// The chain that drops what was not translated, and the counter of that.
const GUARD: &str = "guard";
const UNTRANSLATED: &str = "untranslated";
/// The counter of packets that connection tracking takes for invalid.
const INVALID: &str = "invalid";

/// Translation that an egress wants for packets that are steered to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatEgress {
    /// Its interface.
    pub interface: String,
    /// Its firewall mark.
    pub mark: u32,
    /// True if packets get the interface's address.
    pub masquerade: bool,
    /// True if other chains may translate their destinations.
    pub skip_dnat: bool,
}

/// The table as `nft` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Its chains and rules in their order, without the numbers by which the kernel tells them apart. Empty if there is no such table.
    pub content: String,
    /// Number of packets that were dropped since the table was made, because connection tracking had not translated them.
    pub untranslated: u64,
}

/// The content of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatPlan {
    /// The table's name.
    pub table: String,
    /// The bits of the firewall mark that are ours.
    pub mask: u32,
    /// The egresses that want anything.
    pub egresses: Vec<NatEgress>,
}

impl NatPlan {
    /// Makes the table as planned, in one transaction, for which `nft` may take so long. Connections that exist keep their addresses.
    ///
    /// # Errors
    ///
    /// When there is no `nft`, or the kernel refuses the table. Then nothing has changed.
    pub async fn apply(&self, limit: Duration) -> Result<()> {
        let masquerades = self.egresses.iter().any(|egress| egress.masquerade);
        let mut unguarded = None;
        if masquerades {
            match run(&self.commands(true), limit).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is::<tool::TimedOut>() => return Err(error),
                Err(error) => unguarded = Some(error),
            }
        }
        run(&self.commands(false), limit)
            .await
            .with_context(|| format!("cannot make the nftables table inet {}", self.table))?;
        if let Some(error) = unguarded {
            tracing::warn!(
                "what connection tracking does not translate is not dropped, as where the kernel has no nft_fib_inet: {error:#}"
            );
        }
        Ok(())
    }

    /// Makes the table anew, with the guard if the kernel has what that needs.
    fn commands(&self, is_guarded: bool) -> Vec<Value> {
        let mut commands = self.removal();
        if self.egresses.is_empty() {
            return commands;
        }
        commands.push(json!({ "add": self.table() }));
        commands.push(self.chain("prerouting", "nat", "prerouting", BEFORE_DNAT));
        commands.push(self.chain("postrouting", "nat", "postrouting", BEFORE_SNAT));
        if is_guarded {
            commands.extend([UNTRANSLATED, INVALID].map(|name| self.counter(name)));
            commands.push(self.chain(GUARD, "filter", "postrouting", BEHIND_SNAT));
        }
        for egress in &self.egresses {
            commands.extend(self.rules(egress));
            if is_guarded && egress.masquerade {
                commands.extend(self.guard_rules(egress));
            }
        }
        commands
    }

    /// Returns what the table has.
    ///
    /// # Errors
    ///
    /// When `nft` cannot be run or does not answer.
    pub async fn listing(&self) -> Result<Listing> {
        let output = tool::output("nft", &["-j", "list", "table", "inet", &self.table]).await?;
        let listing: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let entries = listing["nftables"].as_array().into_iter().flatten();
        let (counters, rest): (Vec<Value>, Vec<Value>) = entries
            .filter(|entry| entry.get("metainfo").is_none())
            .cloned()
            .partition(|entry| entry.get("counter").is_some());
        let counter = counters.iter().map(|entry| &entry["counter"]);
        let counter = counter.filter(|counter| counter["name"] == UNTRANSLATED);
        let untranslated = counter.filter_map(|counter| counter["packets"].as_u64());
        let untranslated = untranslated.sum();
        let mut entries = rest;
        for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
            for kind in entry.values_mut().filter_map(Value::as_object_mut) {
                kind.remove("handle");
            }
        }
        let content = match entries.is_empty() {
            true => String::new(),
            false => Value::from(entries).to_string(),
        };
        Ok(Listing {
            content,
            untranslated,
        })
    }

    /// Returns whether there is such a table, as far as `nft` can tell.
    pub async fn is_there(&self) -> bool {
        nft(tool::LIMIT, &["list", "table", "inet", &self.table])
            .await
            .is_ok()
    }

    /// Removes the table, if it is there.
    ///
    /// # Errors
    ///
    /// When there is no `nft`, or the kernel refuses.
    pub async fn remove(&self) -> Result<()> {
        run(&self.removal(), tool::LIMIT)
            .await
            .with_context(|| format!("cannot remove the nftables table inet {}", self.table))
    }

    /// A table that is there or not is gone after this.
    fn removal(&self) -> Vec<Value> {
        vec![
            json!({ "add": self.table() }),
            json!({ "delete": self.table() }),
        ]
    }

    fn table(&self) -> Value {
        json!({ "table": { "family": "inet", "name": self.table } })
    }

    fn chain(&self, name: &str, kind: &str, hook: &str, priority: i32) -> Value {
        let chain = json!({
            "family": "inet", "table": self.table, "name": name,
            "type": kind, "hook": hook, "prio": priority, "policy": "accept",
        });
        json!({ "add": { "chain": chain } })
    }

    fn counter(&self, name: &str) -> Value {
        let counter = json!({ "family": "inet", "table": self.table, "name": name });
        json!({ "add": { "counter": counter } })
    }

    /// Drops packets that leave with a client's address, because their connection began on another way or they belong to none: nothing
    /// would come back. Packets with an address of the gateway's own pass (probes, and what encloses others), and so do answers of
    /// connections that came in by the egress.
    fn guard_rules(&self, egress: &NatEgress) -> Vec<Value> {
        let (leaves, marked) = (leaves_by(egress), self.marked(egress));
        let ct = |key: &str| json!({ "ct": { "key": key } });
        let direction = |direction: &str| is(&ct("direction"), &json!(direction));
        let has_none = |bits: Value| is(&json!({ "&": [ct("status"), bits] }), &json!(0));
        let is_v4 = is(&meta("nfproto"), &json!("ipv4"));
        let invalid = json!({ "match": { "op": "in", "left": ct("state"), "right": "invalid" } });
        let foreign = json!({ "match": {
            "op": "!=", "left": { "fib": { "result": "type", "flags": ["saddr"] } }, "right": "local",
        } });
        let rule = |matches: Vec<Value>, counter: &str| {
            let mut rule = vec![leaves.clone(), marked.clone()];
            rule.extend(matches);
            rule.extend([
                foreign.clone(),
                json!({ "counter": counter }),
                json!({ "drop": null }),
            ]);
            json!({ "add": { "rule": {
                "family": "inet", "table": self.table, "chain": GUARD, "expr": rule,
            } } })
        };
        vec![
            rule(
                vec![direction("original"), has_none(json!("snat"))],
                UNTRANSLATED,
            ),
            rule(
                vec![
                    is_v4,
                    direction("reply"),
                    has_none(json!({ "|": ["snat", "dnat"] })),
                ],
                UNTRANSLATED,
            ),
            rule(vec![invalid], INVALID),
        ]
    }

    /// Matches what is steered to an egress.
    fn marked(&self, egress: &NatEgress) -> Value {
        is(
            &json!({ "&": [meta("mark"), self.mask] }),
            &json!(egress.mark),
        )
    }

    fn rules(&self, egress: &NatEgress) -> Vec<Value> {
        let marked = self.marked(egress);
        let mut rules = Vec::new();
        let mut add = |chain: &str, expressions: Vec<Value>| {
            let rule = json!({ "family": "inet", "table": self.table, "chain": chain, "expr": expressions });
            rules.push(json!({ "add": { "rule": rule } }));
        };
        if egress.skip_dnat {
            for (family, protocol) in [("ipv4", "ip"), ("ipv6", "ip6")] {
                let destination = json!({ "payload": { "protocol": protocol, "field": "daddr" } });
                let same = json!({ "dnat": { "family": protocol, "addr": destination } });
                add(
                    "prerouting",
                    vec![marked.clone(), is(&meta("nfproto"), &json!(family)), same],
                );
            }
        }
        if egress.masquerade {
            let leaves = leaves_by(egress);
            add(
                "postrouting",
                vec![leaves, marked, json!({ "masquerade": null })],
            );
        }
        rules
    }
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

/// Matches what leaves by an egress.
fn leaves_by(egress: &NatEgress) -> Value {
    is(&meta("oifname"), &json!(egress.interface))
}

/// An expression that a rule matches by.
fn is(left: &Value, right: &Value) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right } })
}

/// Runs commands in one transaction.
async fn run(commands: &[Value], limit: Duration) -> Result<()> {
    let commands = json!({ "nftables": commands }).to_string();
    nft(limit, &["-j", &commands])
        .await
        .map(drop)
        .context("install nftables if it is missing, or set masquerade and skip_dnat to false")
}

/// Everybody's tables, as nft prints them in JSON.
///
/// # Errors
///
/// When there is no `nft`, or it fails.
pub async fn ruleset() -> Result<Value> {
    Ok(serde_json::from_slice(
        &nft(tool::LIMIT, &["-j", "list", "ruleset"]).await?,
    )?)
}

/// The same as text, with the numbers of rules: it tells more of what iptables has made.
///
/// # Errors
///
/// As [`ruleset`].
pub async fn listing() -> Result<String> {
    let listing = nft(tool::LIMIT, &["-a", "list", "ruleset"]).await?;
    Ok(String::from_utf8_lossy(&listing).into_owned())
}

async fn nft(limit: Duration, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = tool::output_within(limit, "nft", arguments).await?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}
