//! Public addresses as Microsoft's admin interfaces take them.

use std::fmt::Write;

use clap::ValueEnum;
use ipnet::IpNet;
use serde_json::json;

/// The most ranges of one named location (Microsoft Entra, "Conditional Access: network assignment").
const RANGES: usize = 2000;

/// Service that takes the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AddressFormat {
    /// A named location for Microsoft Graph: the body of `POST /identity/conditionalAccess/namedLocations`
    Graph,
    /// PowerShell for Teams' trusted addresses
    Teams,
    /// PowerShell for SharePoint's allowed addresses
    Sharepoint,
}

/// Writes ranges of a site for one of Microsoft's interfaces.
///
/// # Errors
///
/// Fails if there are none, or more than it takes.
pub fn export(
    format: AddressFormat,
    site: &str,
    is_trusted: bool,
    ranges: &[IpNet],
) -> Result<String, String> {
    if ranges.is_empty() {
        return Err("there is no address to register".to_owned());
    }
    if ranges.len() > RANGES {
        return Err(format!(
            "{} ranges are more than a named location takes ({RANGES})",
            ranges.len()
        ));
    }
    Ok(match format {
        AddressFormat::Graph => graph(site, is_trusted, ranges),
        AddressFormat::Teams => teams(site, ranges),
        AddressFormat::Sharepoint => sharepoint(ranges),
    })
}

fn graph(site: &str, is_trusted: bool, ranges: &[IpNet]) -> String {
    let ranges: Vec<_> = (ranges.iter())
        .map(|range| {
            let family = match range {
                IpNet::V4(_) => "#microsoft.graph.iPv4CidrRange",
                IpNet::V6(_) => "#microsoft.graph.iPv6CidrRange",
            };
            json!({ "@odata.type": family, "cidrAddress": range.to_string() })
        })
        .collect();
    let location = json!({
        "@odata.type": "#microsoft.graph.ipNamedLocation",
        "displayName": site,
        "isTrusted": is_trusted,
        "ipRanges": ranges,
    });
    format!("{location:#}\n")
}

fn teams(site: &str, ranges: &[IpNet]) -> String {
    let mut text = String::new();
    for range in ranges {
        let _ = writeln!(
            text,
            "New-CsTenantTrustedIPAddress -IPAddress {} -MaskBits {} -Description {}",
            range.addr(),
            range.prefix_len(),
            quoted(site)
        );
    }
    text
}

/// The cmdlet replaces the list, so that the addresses are added to the one there is. Single addresses are written without a length, so that
/// none stands there twice.
fn sharepoint(ranges: &[IpNet]) -> String {
    let list = ranges.iter().map(|range| match range {
        range if range.prefix_len() == range.max_prefix_len() => range.addr().to_string(),
        range => range.to_string(),
    });
    let list: Vec<String> = list.map(|range| quoted(&range)).collect();
    format!(
        "$allowed = (Get-SPOTenant).IPAddressAllowList -split ',' | ForEach-Object {{ $_.Trim() }} | Where-Object {{ $_ }}\n\
         $allowed = @(@($allowed) + @({}) | Select-Object -Unique)\n\
         Set-SPOTenant -IPAddressAllowList ($allowed -join ',')\n",
        list.join(", ")
    )
}

/// Quotes a text for PowerShell, in which nothing is replaced then but a quote by two.
fn quoted(text: &str) -> String {
    // PowerShell takes typographic quotes for quotes.
    let text: String = text
        .chars()
        .filter(|c| !c.is_control())
        .map(|c| {
            if ('\u{2018}'..='\u{201b}').contains(&c) {
                '\''
            } else {
                c
            }
        })
        .collect();
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Vec<IpNet> {
        ["203.0.113.1/32", "2001:db8::/64"]
            .map(|text| text.parse().unwrap())
            .to_vec()
    }

    #[test]
    fn a_named_location_has_all_ranges() {
        let text = export(AddressFormat::Graph, "Berlin \"1\"", false, &ranges()).unwrap();
        let location: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(location["displayName"], "Berlin \"1\"");
        assert_eq!(location["isTrusted"], false);
        assert_eq!(location["ipRanges"][0]["cidrAddress"], "203.0.113.1/32");
        assert_eq!(
            location["ipRanges"][0]["@odata.type"],
            "#microsoft.graph.iPv4CidrRange"
        );
        assert_eq!(
            location["ipRanges"][1]["@odata.type"],
            "#microsoft.graph.iPv6CidrRange"
        );
        let many = vec![ranges()[0]; RANGES + 1];
        assert!(export(AddressFormat::Graph, "x", false, &many).is_err());
        assert!(export(AddressFormat::Sharepoint, "x", false, &[]).is_err());
    }

    #[test]
    fn powershell_takes_the_name_as_it_is() {
        let text = export(
            AddressFormat::Teams,
            "O'Brien \u{2019}; Remove-Item /",
            false,
            &ranges(),
        )
        .unwrap();
        let expected = "New-CsTenantTrustedIPAddress -IPAddress 203.0.113.1 -MaskBits 32 -Description 'O''Brien ''; Remove-Item /'\n\
                        New-CsTenantTrustedIPAddress -IPAddress 2001:db8:: -MaskBits 64 -Description 'O''Brien ''; Remove-Item /'\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn sharepoints_list_is_added_to() {
        let text = export(AddressFormat::Sharepoint, "x", false, &ranges()).unwrap();
        assert!(
            text.contains("@($allowed) + @('203.0.113.1', '2001:db8::/64') |"),
            "{text}"
        );
    }
}
