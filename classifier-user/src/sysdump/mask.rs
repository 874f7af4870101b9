//! What a support case must not have: passwords, and who the clients are.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Replaces clients' addresses by numbers. The same client has the same number throughout.
#[derive(Debug, Default)]
pub(super) struct Mask {
    networks: Vec<IpNet>,
    /// The gateway's own addresses, which stay.
    own: Vec<IpAddr>,
    seen: RefCell<BTreeMap<IpAddr, usize>>,
}

impl Mask {
    /// Masks the hosts of networks, but for the gateway's own addresses.
    pub(super) fn of_clients(networks: &[IpNet], own: Vec<IpAddr>) -> Self {
        Mask {
            networks: networks.iter().map(IpNet::trunc).collect(),
            own,
            seen: RefCell::default(),
        }
    }

    /// The text without clients' addresses.
    pub(super) fn apply(&self, text: &str) -> String {
        if self.networks.is_empty() {
            return text.to_owned();
        }
        let mut masked = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(is_address_part) {
            masked.push_str(&rest[..start]);
            rest = &rest[start..];
            let length = rest.find(|c| !is_address_part(c)).unwrap_or(rest.len());
            masked.push_str(&self.word(&rest[..length]));
            rest = &rest[length..];
        }
        masked + rest
    }

    fn word(&self, word: &str) -> String {
        // As in a sentence, or before a port.
        let bare = word.trim_end_matches(['.', ':']);
        let (host, port) = match bare.rsplit_once(':') {
            Some((host, port)) if host.parse::<std::net::Ipv4Addr>().is_ok() => (host, Some(port)),
            _ => (bare, None),
        };
        let Some(number) = host.parse().ok().and_then(|address| self.client(address)) else {
            return word.to_owned();
        };
        let port = port.map_or(String::new(), |port| format!(":{port}"));
        format!("client-{number}{port}{}", &word[bare.len()..])
    }

    /// The number of a client; none of other addresses.
    fn client(&self, address: IpAddr) -> Option<usize> {
        let is_network = |net: &IpNet| net.addr() == address || net.broadcast() == address;
        let is_client = self
            .networks
            .iter()
            .any(|net| net.contains(&address) && !is_network(net));
        if !is_client || self.own.contains(&address) {
            return None;
        }
        let mut seen = self.seen.borrow_mut();
        let next = seen.len() + 1;
        Some(*seen.entry(address).or_insert(next))
    }
}

fn is_address_part(c: char) -> bool {
    c.is_ascii_hexdigit() || c == '.' || c == ':'
}

/// The text without what stands for a password in URLs: `http://user:password@host`.
pub(super) fn secrets(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (before, after) = rest.split_at(start + 3);
        masked.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '/'))
            .unwrap_or(after.len());
        match after[..end].rfind('@') {
            Some(at) => {
                masked.push_str("***");
                rest = &after[at..];
            }
            None => rest = after,
        }
    }
    masked + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_become_numbers_and_all_else_stays() {
        let networks: Vec<IpNet> = vec![
            "10.1.0.1/24".parse().unwrap(),
            "fd00:1::1/64".parse().unwrap(),
        ];
        let own = networks.iter().map(IpNet::addr).collect();
        let mask = Mask::of_clients(&networks, own);
        let text = "10.1.0.2 to 10.1.0.1:53, 10.1.0.2:4711 and 10.1.0.0/24, 10.1.0.255; 10.2.0.2 [fd00:1::5]:443 from \
                    fd00:1::/64, cafe 12:34. face 10.1.0.9.";
        assert_eq!(
            mask.apply(text),
            "client-1 to 10.1.0.1:53, client-1:4711 and 10.1.0.0/24, 10.1.0.255; 10.2.0.2 [client-2]:443 from fd00:1::/64, \
             cafe 12:34. face client-3."
        );
        assert_eq!(Mask::default().apply(text), text);
    }

    #[test]
    fn passwords_in_urls_are_gone() {
        let text =
            "proxy = \"http://me:p@ss@proxy:8080\"\nsource = \"https://x/a@b\" # http://a:b@c";
        assert_eq!(
            secrets(text),
            "proxy = \"http://***@proxy:8080\"\nsource = \"https://x/a@b\" # http://***@c"
        );
    }
}
