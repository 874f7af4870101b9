//! What a run of the benchmarks has found, for people and for programs.

use std::fs;

use anyhow::{Context, Result};
use comfy_table::Table;
use serde::{Deserialize, Serialize};

use crate::measure::Spread;

/// Everything that one run has found.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) quick: bool,
    environment: Vec<(&'static str, String)>,
    pub(crate) rows: Vec<Row>,
    pub(crate) goals: Vec<Goal>,
}

/// Several subjects in one case.
#[derive(Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) part: &'static str,
    pub(crate) case: String,
    pub(crate) unit: &'static str,
    /// Subject and what was measured.
    pub(crate) values: Vec<(String, Spread)>,
}

/// A figure that shall stay on one side of a limit.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Goal {
    pub(crate) what: String,
    /// Empty for a ratio of two things that were measured in turn, which is what two runs can be compared by.
    pub(crate) unit: String,
    pub(crate) value: Spread,
    pub(crate) at_most: bool,
    pub(crate) limit: f64,
    met: bool,
}

impl Goal {
    pub(crate) fn at_most(what: String, value: Spread, limit: f64) -> Self {
        Goal {
            met: value.median <= limit,
            what,
            unit: String::new(),
            value,
            at_most: true,
            limit,
        }
    }

    pub(crate) fn at_least(what: String, value: Spread, limit: f64) -> Self {
        Goal {
            met: value.median >= limit,
            at_most: false,
            ..Goal::at_most(what, value, limit)
        }
    }

    /// The same figure, which is no ratio.
    pub(crate) fn in_unit(self, unit: &str) -> Self {
        Goal {
            unit: unit.to_owned(),
            ..self
        }
    }
}

impl Report {
    pub(crate) fn new(quick: bool) -> Result<Self> {
        Ok(Report {
            quick,
            environment: environment(quick)?,
            rows: Vec::new(),
            goals: Vec::new(),
        })
    }

    /// How often each thing is measured.
    pub(crate) fn rounds(&self) -> usize {
        if self.quick { 5 } else { 9 }
    }

    /// Notes a row, and says so, since a run takes minutes.
    pub(crate) fn row(&mut self, row: Row) {
        let values = row
            .values
            .iter()
            .map(|(subject, spread)| format!("{subject} {}", number(spread.median)));
        eprintln!(
            "{}: {}: {} {}",
            row.part,
            row.case,
            values.collect::<Vec<_>>().join(", "),
            row.unit
        );
        self.rows.push(row);
    }

    pub(crate) fn goal(&mut self, goal: Goal) {
        self.goals.push(goal);
    }

    /// The whole report as Markdown.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.environment {
            text.push_str(&format!("- {name}: {value}\n"));
        }
        let mut rest = self.rows.as_slice();
        while let Some(first) = rest.first() {
            let subjects = |row: &Row| {
                row.values
                    .iter()
                    .map(|value| value.0.clone())
                    .collect::<Vec<_>>()
            };
            let alike = rest
                .iter()
                .take_while(|row| row.part == first.part && subjects(row) == subjects(first))
                .count();
            text.push_str(&format!("\n### {} ({})\n\n", first.part, first.unit));
            let mut table = Table::new();
            table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
            let header = std::iter::once("case".to_owned()).chain(subjects(first));
            table.set_header(header);
            for row in &rest[..alike] {
                let values = row.values.iter().map(|(_, spread)| {
                    format!(
                        "{} ({} to {})",
                        number(spread.median),
                        number(spread.low),
                        number(spread.high)
                    )
                });
                table.add_row(std::iter::once(row.case.clone()).chain(values));
            }
            text.push_str(&format!("{table}\n"));
            rest = &rest[alike..];
        }
        text.push_str("\n### Goals\n\n");
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header(["goal", "limit", "measured", ""]);
        for goal in &self.goals {
            let side = if goal.at_most { "at most" } else { "at least" };
            let Spread { median, low, high } = goal.value;
            let measured = format!("{} ({} to {})", number(median), number(low), number(high));
            table.add_row([
                goal.what.clone(),
                format!("{side} {} {}", goal.limit, goal.unit)
                    .trim_end()
                    .to_owned(),
                measured,
                if goal.met { "met" } else { "MISSED" }.to_owned(),
            ]);
        }
        text.push_str(&format!("{table}\n"));
        text
    }
}

/// Three digits that mean something.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0..1.0 => 3,
        1.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

fn environment(quick: bool) -> Result<Vec<(&'static str, String)>> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("is /proc mounted?")?;
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let count = cpus
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    Ok(vec![
        ("kernel", kernel.trim().to_owned()),
        ("processor", format!("{model}, {count} cores in all")),
        (
            "command",
            if quick {
                "cargo xtask bench --quick"
            } else {
                "cargo xtask bench"
            }
            .to_owned(),
        ),
        ("breakout", env!("CARGO_PKG_VERSION").to_owned()),
    ])
}
