//! Masking of what a support case must not have: passwords, and who the clients are.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// Replaces clients' addresses by numbers. The same client has the same number throughout.
#[derive(Debug, Default)]
pub(super) struct Mask {
    networks: Vec<IpNet>,
    /// The gateway's own addresses, which stay.
    own: Vec<IpAddr>,
    /// MAC addresses that stay; all others go, unless there are no networks.
    macs: BTreeSet<String>,
    seen: RefCell<BTreeMap<IpAddr, usize>>,
    seen_macs: RefCell<BTreeMap<String, usize>>,
}

impl Mask {
    /// Masks the hosts of networks, but for the gateway's own addresses, and all MAC addresses but these.
    pub(super) fn of_clients(networks: &[IpNet], own: Vec<IpAddr>, macs: BTreeSet<String>) -> Self {
        Mask {
            networks: networks.iter().map(IpNet::trunc).collect(),
            own,
            macs,
            ..Mask::default()
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
        // As behind a name: `from:10.1.0.2`.
        if let Some(start) = behind_colon(bare) {
            return word[..start].to_owned() + &self.word(&word[start..]);
        }
        if is_mac(bare) {
            return self.mac(bare) + &word[bare.len()..];
        }
        let (host, port) = match bare.rsplit_once(':') {
            Some((host, port)) if host.parse::<Ipv4Addr>().is_ok() => (host, Some(port)),
            _ => (bare, None),
        };
        let address = host
            .parse()
            .ok()
            .map(|address: IpAddr| address.to_canonical());
        let Some(number) = address.and_then(|address| self.client(address)) else {
            return word.to_owned();
        };
        let port = port.map_or(String::new(), |port| format!(":{port}"));
        format!("client-{number}{port}{}", &word[bare.len()..])
    }

    /// The number of a client; none of other addresses.
    fn client(&self, address: IpAddr) -> Option<usize> {
        let is_network = |net: &IpNet| match net {
            IpNet::V4(_) if net.prefix_len() >= 31 => false,
            IpNet::V4(_) => net.addr() == address || net.broadcast() == address,
            IpNet::V6(_) => net.addr() == address && net.prefix_len() < 127,
        };
        let is_client = self
            .networks
            .iter()
            .any(|net| net.contains(&address) && !is_network(net));
        if !is_client || self.own.contains(&address) {
            return None;
        }
        Some(number_of(&self.seen, &address))
    }

    fn mac(&self, mac: &str) -> String {
        let mac = mac.to_lowercase();
        let is_nobodys = matches!(mac.as_str(), "ff:ff:ff:ff:ff:ff" | "00:00:00:00:00:00");
        if is_nobodys || self.macs.contains(&mac) {
            return mac;
        }
        format!("mac-{}", number_of(&self.seen_macs, &mac))
    }
}

/// The number of something, which is a new one if it was not seen before.
fn number_of<T: Ord + Clone>(seen: &RefCell<BTreeMap<T, usize>>, one: &T) -> usize {
    let mut seen = seen.borrow_mut();
    let next = seen.len() + 1;
    *seen.entry(one.clone()).or_insert(next)
}

/// Returns where the address begins in a word that is something else up to a colon.
fn behind_colon(word: &str) -> Option<usize> {
    if word.parse::<IpAddr>().is_ok() {
        return None;
    }
    match word.find('.') {
        Some(dot) => word[..dot].rfind(':').map(|colon| colon + 1),
        None => (word.starts_with(':') && !word.starts_with("::")).then_some(1),
    }
}

fn is_mac(word: &str) -> bool {
    let bytes: Vec<&str> = word.split(':').collect();
    let is_byte = |byte: &&str| byte.len() == 2 && byte.chars().all(|c| c.is_ascii_hexdigit());
    bytes.len() == 6 && bytes.iter().all(is_byte)
}

fn is_address_part(c: char) -> bool {
    c.is_ascii_hexdigit() || c == '.' || c == ':'
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
        let macs = BTreeSet::from(["02:00:00:00:00:01".to_owned()]);
        let mask = Mask::of_clients(&networks, own, macs);
        let text = "10.1.0.2 to 10.1.0.1:53, 10.1.0.2:4711 and 10.1.0.0/24, 10.1.0.255; 10.2.0.2 [fd00:1::5]:443 from \
                    fd00:1::/64, cafe 12:34. face 10.1.0.9. ::ffff:10.1.0.2 02:00:00:00:00:01 ether 02:00:00:00:00:02";
        assert_eq!(
            mask.apply(text),
            "client-1 to 10.1.0.1:53, client-1:4711 and 10.1.0.0/24, 10.1.0.255; 10.2.0.2 [client-2]:443 from fd00:1::/64, \
             cafe 12:34. face client-3. client-1 02:00:00:00:00:01 ether mac-1"
        );
        assert_eq!(Mask::default().apply(text), text);
        // Where there is a host alone, and right behind a name.
        let hosts: Vec<IpNet> = ["10.9.0.7/32", "10.9.1.0/31", "fd00:9::7/128"]
            .map(|net| net.parse().unwrap())
            .to_vec();
        let mask = Mask::of_clients(&hosts, Vec::new(), BTreeSet::new());
        assert_eq!(
            mask.apply("10.9.0.7 from:10.9.1.1 source:10.9.1.0:53 icmp:fd00:9::7 10.9.0.8"),
            "client-1 from:client-2 source:client-3:53 icmp:client-4 10.9.0.8"
        );
    }
}
