//! Checks of the configuration that need nothing but the configuration.

mod assess;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use breakout_common::egress::MAX_EGRESSES;
use breakout_common::path::MAX_PREFERENCES;
use ipnet::IpNet;

use super::{Config, EgressConfig, ListConfig, ListSource, Mode, PASS, Preference, SERVICE, Span};
use crate::list::{Category, Instance};
use crate::plain::plain;
use crate::secrets::masked;

/// The longest interface name the kernel takes (IFNAMSIZ without the closing zero).
const MAX_INTERFACE: usize = 15;

pub(super) fn validate(config: &Config) -> Result<(), String> {
    list(&config.list)?;
    lans(config)?;
    egresses(config)?;
    policy(config)?;
    preferences(config)?;
    health(config)?;
    assess::assess(&config.assess)?;
    routing(config)
}

fn list(list: &ListConfig) -> Result<(), String> {
    instances("list.instance", &list.instance)?;
    let instances = list.instances();
    if instances.iter().collect::<BTreeSet<_>>().len() < instances.len() {
        return Err("list.instance names an instance twice".to_owned());
    }
    if instances.is_empty() {
        return Err("list.instance names no instance".to_owned());
    }
    if instances.len() > 1
        && matches!(
            list.list_source(),
            ListSource::Fixed(_) | ListSource::Watched(_)
        )
    {
        return Err("a list in a file is of one instance; list.instance names several".to_owned());
    }
    if list.file.is_some() && list.source != SERVICE {
        return Err("list.file and list.source are both given; one of them is enough".to_owned());
    }
    if list.is_plain() && !list.insecure {
        return Err(format!(
            "list.source = \"{}\" is without TLS, so anybody on the way there can change the lists. Use https://; or, if that \
             is known and wanted, set list.insecure = true",
            masked(&list.source)
        ));
    }
    let source = list.source.to_ascii_lowercase();
    let is_microsofts = source.contains("//endpoints.office.com");
    let shortest = if is_microsofts {
        Span::hours(1)
    } else {
        Span(Duration::from_secs(1))
    };
    if list.interval < shortest {
        return Err(format!(
            "list.interval = \"{}\" is too short: Microsoft asks for one hour or more, a mirror may be asked every second",
            String::from(list.interval)
        ));
    }
    if list.keep < 2 {
        return Err(format!(
            "list.keep = {} leaves nothing to go back to: 2 or more",
            list.keep
        ));
    }
    if let Some(tenant) = list.tenant.as_deref().filter(|tenant| !is_label(tenant)) {
        return Err(format!(
            "list.tenant = \"{tenant}\" is no tenant name: letters, digits and hyphens"
        ));
    }
    if let Some(area) = list.service_areas.iter().find(|area| !is_label(area)) {
        return Err(format!(
            "list.service_areas: \"{}\" is no service area; Microsoft's are Common, Exchange, SharePoint and Skype",
            plain(area)
        ));
    }
    if list.file.is_none()
        && matches!(list.list_source(), ListSource::Watched(_))
        && list.source.contains("://")
    {
        return Err(format!(
            "list.source = \"{}\" is a URL that is not https:// or http://",
            masked(&list.source)
        ));
    }
    // Anything else is a host with a port: the client would put http:// before it.
    if let Some((scheme, _)) = list
        .proxy
        .as_deref()
        .and_then(|proxy| proxy.split_once("://"))
        && !["http", "https"]
            .iter()
            .any(|known| scheme.eq_ignore_ascii_case(known))
    {
        return Err(format!(
            "list.proxy: proxies are spoken to by http:// or https://, not by {}://",
            plain(scheme)
        ));
    }
    Ok(())
}

fn is_label(text: &str) -> bool {
    let is_ordinary = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !text.is_empty() && text.bytes().all(is_ordinary)
}

fn instances(key: &str, names: &[String]) -> Result<(), String> {
    for name in names {
        if Instance::from_name(name).is_none() {
            let there_are = Instance::ALL.map(Instance::name).join(", ");
            return Err(format!(
                "{key} = \"{name}\" is no instance; there are: {there_are}"
            ));
        }
    }
    Ok(())
}

fn policy(config: &Config) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for custom in &config.custom {
        one_line("[[custom]] name", &custom.name)?;
        if custom.name.is_empty() || !names.insert(&custom.name) {
            return Err(format!(
                "[[custom]] \"{}\" needs a name of its own",
                custom.name
            ));
        }
        prefixes(&format!("[[custom]] \"{}\"", custom.name), &custom.prefixes)?;
    }
    let mut rules = BTreeSet::new();
    for (number, rule) in (1..).zip(&config.policy) {
        let key = match &rule.name {
            Some(name) => {
                one_line("[[policy]] name", name)?;
                format!("[[policy]] \"{name}\"")
            }
            None => format!("[[policy]] number {number}"),
        };
        if rule.name.as_ref().is_some_and(|name| !rules.insert(name)) {
            return Err(format!("{key} is given twice"));
        }
        instances(&format!("{key}: instance"), &rule.instance)?;
        for category in rule.category.iter() {
            if !matches!(
                Category::from(category.as_str()),
                Category::Optimize | Category::Allow | Category::Default
            ) {
                return Err(format!(
                    "{key}: category = \"{category}\"; there are: optimize, allow, default"
                ));
            }
        }
        if let Some(name) = rule.custom.iter().find(|name| !names.contains(name)) {
            return Err(format!("{key}: there is no [[custom]] \"{name}\""));
        }
        if let Some(name) = rule
            .lan
            .iter()
            .find(|name| !config.lan.iter().any(|lan| lan.interface == **name))
        {
            return Err(format!("{key}: there is no [[lan]] \"{name}\""));
        }
        if let Some(vlan) = rule.vlan.iter().find(|vlan| !(1..=4094).contains(*vlan)) {
            return Err(format!("{key}: vlan = {vlan} is no VLAN id: 1 to 4094"));
        }
        action(&key, &rule.action, config)?;
        for source in rule.sources.iter() {
            if source.network() != source.addr() {
                return Err(format!(
                    "{key}: source {source} has address bits beyond its prefix length"
                ));
            }
        }
    }
    Ok(())
}

fn action(key: &str, action: &Preference, config: &Config) -> Result<(), String> {
    if action.is_pass() {
        return Ok(());
    }
    let egresses = action.egresses();
    if egresses.is_empty() {
        return Err(format!("{key}: action names no egress"));
    }
    for (index, egress) in egresses.iter().enumerate() {
        if !config.egress.contains_key(*egress) {
            let there_are: Vec<&str> = config.egress.keys().map(String::as_str).collect();
            return Err(format!(
                "{key}: action = \"{egress}\" is neither \"pass\" nor an [egress.NAME]; there are: {}",
                there_are.join(", ")
            ));
        }
        if egresses[..index].contains(egress) {
            return Err(format!("{key}: action names egress \"{egress}\" twice"));
        }
    }
    if let Preference::Weighted(weights) = action
        && weights.values().any(|weight| !(1..=1000).contains(weight))
    {
        return Err(format!("{key}: weights are numbers from 1 to 1000"));
    }
    Ok(())
}

fn preferences(config: &Config) -> Result<(), String> {
    let count = config.preferences().len();
    if count > MAX_PREFERENCES {
        return Err(format!(
            "the rules have {count} different actions besides \"pass\", {MAX_PREFERENCES} are possible"
        ));
    }
    Ok(())
}

fn health(config: &Config) -> Result<(), String> {
    let health = &config.health;
    for (key, span, shortest) in [
        ("interval", health.interval, 20),
        ("slow_interval", health.slow_interval, 500),
        ("media_latency", health.media_latency, 1),
        ("latency", health.latency, 1),
    ] {
        if span.0 < Duration::from_millis(shortest) {
            return Err(format!(
                "health.{key} = \"{}\" is too short: {shortest} ms or more",
                String::from(span)
            ));
        }
    }
    if !(64..=1_048_576).contains(&config.pinning.size) {
        return Err(format!(
            "pinning.size = {}: 64 to 1048576 flows can be remembered",
            config.pinning.size
        ));
    }
    Ok(())
}

fn prefixes(key: &str, prefixes: &[IpNet]) -> Result<(), String> {
    for prefix in prefixes {
        if prefix.network() != prefix.addr() || prefix.prefix_len() == 0 {
            return Err(format!(
                "{key}: {prefix} covers every address or has address bits beyond its prefix length"
            ));
        }
    }
    Ok(())
}

fn lans(config: &Config) -> Result<(), String> {
    if config.lan.is_empty() {
        return Err(
            "no [[lan]] is given: name at least one interface where clients are".to_owned(),
        );
    }
    let mut seen = BTreeSet::new();
    for lan in &config.lan {
        interface_name("lan.interface", &lan.interface)?;
        if !seen.insert(&lan.interface) {
            return Err(format!("[[lan]] \"{}\" is given twice", lan.interface));
        }
    }
    Ok(())
}

fn egresses(config: &Config) -> Result<(), String> {
    if config.egress.is_empty() {
        return Err(
            "no [egress.NAME] is given: name the local internet link, as [egress.local]".to_owned(),
        );
    }
    if config.egress.len() > MAX_EGRESSES {
        return Err(format!(
            "{} egresses are given, {MAX_EGRESSES} are possible",
            config.egress.len()
        ));
    }
    for (name, egress) in &config.egress {
        if name == PASS {
            return Err("[egress.pass]: \"pass\" is what rules say for the ordinary path; choose another name".to_owned());
        }
        if name.contains(|c: char| c.is_whitespace() || c == ',' || c == '>') {
            return Err(format!(
                "[egress.\"{name}\"]: names of egresses have no spaces, commas or \">\""
            ));
        }
        if egress.mode == Mode::Redirect && egress.skips_dnat() {
            return Err(format!(
                "egress.{name}: mode = \"redirect\" sends packets past netfilter, so there is no DNAT to skip; remove \
                 skip_dnat, or use mode = \"route\""
            ));
        }
        if egress.mode == Mode::Route && egress.returns {
            return Err(format!(
                "egress.{name}: return = true is for mode = \"redirect\"; in mode = \"route\" replies go through netfilter as all does"
            ));
        }
        interface_name(&format!("egress.{name}.interface"), &egress.interface)?;
        if config
            .lan
            .iter()
            .any(|lan| lan.interface == egress.interface)
        {
            return Err(format!(
                "interface \"{}\" is both a [[lan]] and [egress.{name}]",
                egress.interface
            ));
        }
        let is_beside = |other: &EgressConfig| {
            other.interface == egress.interface && !std::ptr::eq(other, egress)
        };
        if egress.is_translated() && config.egress.values().any(is_beside) {
            return Err(format!(
                "egress.{name}: with mode = \"redirect\" and masquerade = true no other egress can have its interface \"{}\": replies \
                 would not be told apart; use mode = \"route\"",
                egress.interface
            ));
        }
        if egress.gateway.is_some_and(|gateway| {
            gateway.is_unspecified() || gateway.is_multicast() || gateway.is_loopback()
        }) || egress.gateway6.is_some_and(|gateway| {
            gateway.is_unspecified() || gateway.is_multicast() || gateway.is_loopback()
        }) {
            return Err(format!(
                "egress.{name}: the gateway is no unicast address of a neighbour"
            ));
        }
    }
    Ok(())
}

fn routing(config: &Config) -> Result<(), String> {
    let mask = config.routing.mark_mask;
    let bits = mask.count_ones();
    let contiguous = mask != 0
        && (mask >> mask.trailing_zeros()).count_ones() == bits
        && (mask >> mask.trailing_zeros()).trailing_ones() == bits;
    if !contiguous || bits < 5 {
        return Err(format!(
            "routing.mark_mask = {mask:#010x} needs at least five bits, all next to each other"
        ));
    }
    let priority = config.routing.rule_priority;
    if !(1..32766).contains(&priority) {
        return Err(format!(
            "routing.rule_priority = {priority} must lie before the main table's rule: 1 to 32765"
        ));
    }
    let tables = config.routing.table..config.routing.table.saturating_add(16);
    if tables.start == 0 || (253..=255).any(|reserved| tables.contains(&reserved)) {
        return Err(format!(
            "routing.table = {}: the tables from there to {} include the kernel's own (0, 253 to 255)",
            tables.start,
            tables.end - 1
        ));
    }
    Ok(())
}

/// Names are printed, logged and exported.
fn one_line(key: &str, name: &str) -> Result<(), String> {
    match plain(name) {
        Cow::Borrowed(_) => Ok(()),
        Cow::Owned(shown) => Err(format!(
            "{key} = \"{shown}\" has characters that do not show, or end a line"
        )),
    }
}

fn interface_name(key: &str, name: &str) -> Result<(), String> {
    one_line(key, name)?;
    if name.is_empty()
        || name.len() > MAX_INTERFACE
        || name.contains(|c: char| c == '/' || c.is_whitespace())
    {
        return Err(format!(
            "{key} = \"{name}\" is no interface name: 1 to {MAX_INTERFACE} characters, no slash or space"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
