//! `breakout doctor`.

use std::net::IpAddr;

use anyhow::{Result, anyhow};

use super::arguments::ConfigArgument;
use super::offline::Offline;
use super::output::print_json;
use crate::config;
use crate::control::Client;
use crate::doctor::{Controller, Finding, Level, Shown, examine, send};
use crate::exit::{Code, WithCode, coded};
use crate::explain::Query;

pub(super) async fn doctor(config: &ConfigArgument, json: bool) -> Result<()> {
    let offline = Offline::load(config::load(&config.path()).code(Code::Config)?, None)?;
    let mut findings = examine(&offline.config, &offline.ruleset)
        .await
        .code(Code::System)?;
    let sent = match send_packets(&offline).await {
        Ok(shown) => {
            findings.extend(shown.findings);
            findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
            shown.sent
        }
        Err(error) => {
            eprintln!("note: no synthetic packets were sent: {error:#}");
            0
        }
    };
    if json {
        print_json(&findings)?;
    } else if findings.is_empty() {
        out!("nothing found that stands in the way");
    } else {
        findings.iter().for_each(print);
    }
    if !json && sent > 0 {
        out!("{sent} synthetic packets were sent from the LANs and caught before they left");
    }
    match findings.first() {
        Some(worst) if worst.level >= Level::Warning => {
            Err(coded(anyhow!("{}", worst.what), Code::Attention))
        }
        _ => Ok(()),
    }
}

/// Has packets go the way of clients' packets, by the answers of the running controller.
async fn send_packets(offline: &Offline) -> Result<Shown> {
    let mut client = Client::connect(&offline.config.control.socket).await?;
    send(&offline.config, &offline.ruleset, &mut client).await
}

impl Controller for Client {
    async fn egress(&mut self, query: Query) -> Result<Option<String>> {
        Ok(self.explain(query).await?.egress)
    }

    async fn forget(&mut self, client: IpAddr) -> Result<()> {
        self.forget_flows(client).await.map(drop)
    }
}

pub(super) fn print(finding: &Finding) {
    let level = match finding.level {
        Level::Error => "error",
        Level::Warning => "warning",
        Level::Note => "note",
    };
    out!("{level}: {}", finding.what);
    out!("    {}", finding.advice);
}
