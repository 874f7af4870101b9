//! The operator's own endpoint sets.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use breakout_common::table::Transport;
use ipnet::IpNet;

use crate::config::Config;
use crate::list::{Category, EndpointSet, PortRange, SetKey, parse_prefix};
use crate::memory;
use crate::text::decode;

/// Memory that a prefix takes, from its line to the table in the kernel.
const BYTES_PER_PREFIX: u64 = 600;

/// The `[[custom]]` sets of a configuration, with the prefixes from their files.
///
/// # Errors
///
/// When a file cannot be read, or a line of it is no prefix.
pub fn custom_sets(config: &Config) -> Result<Vec<EndpointSet>> {
    let sets = config.custom.iter().map(|custom| {
        let mut prefixes = custom.prefixes.0.clone();
        if let Some(file) = &custom.file {
            prefixes.extend(read_prefixes(file)?);
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        if prefixes.is_empty() {
            bail!("[[custom]] \"{}\" has no prefixes", custom.name);
        }
        Ok(EndpointSet {
            key: SetKey::Custom {
                name: custom.name.clone(),
            },
            service_area: custom.name.clone(),
            category: Category::Custom,
            prefixes,
            ports: custom
                .ports
                .clone()
                .map_or_else(every_port, |ports| ports.0),
            urls: Vec::new(),
            required: false,
            express_route: false,
            withdrawn: None,
        })
    });
    sets.collect()
}

/// One prefix a line; what follows a `#` or a `;` is a comment.
fn read_prefixes(file: &Path) -> Result<Vec<IpNet>> {
    let failed = || {
        format!(
            "cannot read the prefixes of a [[custom]] set: {}",
            file.display()
        )
    };
    let is_file = fs::metadata(file).with_context(failed)?.is_file();
    ensure!(is_file, "{}: it is no regular file", failed());
    let lines = count_lines(file).with_context(failed)?;
    memory::require(lines * BYTES_PER_PREFIX, || {
        format!("{} with {lines} prefixes", file.display())
    })?;
    let bytes = fs::read(file).with_context(failed)?;
    let text = decode(&bytes)
        .map_err(anyhow::Error::msg)
        .with_context(failed)?;
    parse_prefixes(&text, &file.display().to_string())
}

/// Parses one prefix a line; what follows a `#` or a `;` is a comment. `name` says in errors where the text came from.
///
/// # Errors
///
/// Names the first line that is neither.
pub fn parse_prefixes(text: &str, name: &str) -> Result<Vec<IpNet>> {
    let lines = text.lines().enumerate().map(|(number, line)| {
        let line = line.split(['#', ';']).next().unwrap_or_default().trim();
        let prefix = (!line.is_empty()).then(|| parse_prefix(line));
        prefix
            .transpose()
            .map_err(|problem| anyhow::anyhow!("{name}:{}: {problem}", number + 1))
    });
    lines.filter_map(Result::transpose).collect()
}

/// Returns how many lines a file has, without having all of it in memory.
fn count_lines(file: &Path) -> io::Result<u64> {
    let mut reader = BufReader::new(File::open(file)?);
    let mut lines = 0;
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(lines);
        }
        let (count, length) = (
            bytes.iter().filter(|byte| **byte == b'\n').count(),
            bytes.len(),
        );
        lines += count as u64;
        reader.consume(length);
    }
}

fn every_port() -> Vec<PortRange> {
    let ranges = [Transport::Tcp, Transport::Udp].map(|transport| PortRange {
        transport,
        first: 0,
        last: u16::MAX,
    });
    ranges.into()
}
