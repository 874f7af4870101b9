//! `breakout stats`.

use anyhow::Result;

use super::output::{bytes, print_json, table};
use crate::control::Client;

pub(super) async fn stats(client: &mut Client, json: bool) -> Result<()> {
    let stats = client.stats().await?;
    if json {
        return print_json(&stats);
    }
    out!("generation {}", stats.generation);
    out!("");
    let mut reasons = table(&["verdict", "reason", "packets", "bytes", ""], &[2, 3]);
    for reason in stats.reasons.iter().filter(|r| r.count.packets > 0) {
        reasons.add_row([
            reason.verdict.clone(),
            reason.reason.clone(),
            reason.count.packets.to_string(),
            bytes(reason.count.bytes),
            reason.description.clone(),
        ]);
    }
    out!("{reasons}");
    out!("");
    let mut sets = table(
        &["set", "area", "category", "egress", "packets", "bytes"],
        &[4, 5],
    );
    for set in &stats.endpoint_sets {
        sets.add_row([
            match set.set.id {
                Some(id) => format!("{} {id}", set.set.instance),
                None => set.set.instance.clone(),
            },
            set.set.service_area.clone(),
            set.set.category.clone(),
            set.egress.clone().unwrap_or_else(|| "-".to_owned()),
            set.count.packets.to_string(),
            bytes(set.count.bytes),
        ]);
    }
    out!("{sets}");
    let replies = &stats.replies;
    if replies.redirected.packets + replies.by_kernel.packets > 0 {
        out!(
            "replies: {} packets forwarded by the programs, {} left to the kernel",
            replies.redirected.packets,
            replies.by_kernel.packets
        );
    }
    Ok(())
}
