//! Checks of the configuration that need nothing but the configuration.

use std::collections::BTreeSet;

use breakout_common::egress::MAX_EGRESSES;

use super::Config;
use crate::list::Instance;

/// The longest interface name the kernel takes (IFNAMSIZ without the closing zero).
const MAX_INTERFACE: usize = 15;

pub(super) fn validate(config: &Config) -> Result<(), String> {
    instance(&config.list.instance)?;
    lans(config)?;
    egresses(config)?;
    routing(config)
}

fn instance(name: &str) -> Result<(), String> {
    if Instance::from_name(name).is_some() {
        return Ok(());
    }
    let names = Instance::ALL.map(Instance::name);
    Err(format!(
        "list.instance = \"{name}\" is no instance; there are: {}",
        names.join(", ")
    ))
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

fn interface_name(key: &str, name: &str) -> Result<(), String> {
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
mod tests {
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
}
