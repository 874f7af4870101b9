//! The flows of the demo and where each belongs.

use breakout_tests::flow::{Flow, Transport};
use serde::{Serialize, Serializer};

/// The identities of the far ends: for flows that pass, and for those that are steered.
pub(crate) const WAYS: [&str; 2] = ["wan", "internet"];

/// A flow with its name and where it belongs.
#[derive(Clone, Debug)]
pub(crate) struct DemoFlow {
    pub(crate) name: &'static str,
    pub(crate) flow: Flow,
    pub(crate) steered: bool,
}

impl Serialize for DemoFlow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("proto", &self.flow.transport)?;
        map.serialize_entry("destination", &self.flow.destination.ip())?;
        map.serialize_entry("port", &self.flow.destination.port())?;
        map.end()
    }
}

/// All flows of the demo.
pub(crate) fn all() -> Vec<DemoFlow> {
    use Transport::{Tcp, Udp};
    let flow = |name, transport, address, port, steered| DemoFlow {
        name,
        flow: Flow::new(transport, address, port),
        steered,
    };
    vec![
        flow("Exchange", Tcp, "52.98.1.1", 443, true),
        flow("Exchange", Tcp, "2603:1006::1", 443, true),
        flow("Exchange QUIC", Udp, "52.98.1.1", 443, true),
        flow("Exchange QUIC", Udp, "2603:1016::1", 443, true),
        flow("SharePoint", Tcp, "13.107.136.9", 443, true),
        flow("SharePoint", Tcp, "2620:1ec:8f8::8", 443, true),
        flow("Teams media", Udp, "52.113.0.1", 3478, true),
        flow("Teams media", Udp, "2603:1063::17", 3481, true),
        flow("Teams web (Allow)", Tcp, "52.113.0.1", 443, false),
        flow("Exchange IMAP (Allow)", Tcp, "52.98.1.1", 993, false),
        flow("Exchange IMAP (Allow)", Tcp, "2603:1006::1", 993, false),
        flow("Sign-in (Allow)", Tcp, "20.190.128.1", 443, false),
        flow("Sign-in (Allow)", Tcp, "2603:1006:2000::1", 443, false),
        flow("other web", Tcp, "198.51.100.7", 443, false),
        flow("other web", Tcp, "2001:db8::7", 443, false),
        flow("other UDP", Udp, "198.51.100.7", 3478, false),
    ]
}
