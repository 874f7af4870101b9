//! STUN and TURN messages (RFC 8489, RFC 8656), as far as probes need them: requests without authentication, and what answers
//! them. Integers are in network byte order.

use std::net::{IpAddr, SocketAddr};

/// The magic cookie of all messages (RFC 8489, section 5).
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// The header: type, length of what follows, cookie, transaction id.
const HEADER: usize = 20;

/// The class of a success response, and that of an error response, within a message's type (RFC 8489, section 5).
const SUCCESS: u8 = 0x00;
const ERROR: u8 = 0x10;

/// Method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// Asks which address the request came from (RFC 8489).
    Binding = 1,
    /// An address to relay to and from (RFC 8656): what Teams' clients ask its relays for.
    Allocate = 3,
    /// To hold an allocation longer, or to give it up.
    Refresh = 4,
}

/// Class of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Success,
    Error,
}

/// A request of its own transaction.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) bytes: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: Method) -> Self {
        let attribute: &[u8] = match method {
            Method::Binding => &[],
            // REQUESTED-TRANSPORT: UDP.
            Method::Allocate => &[0, 0x19, 0, 4, 17, 0, 0, 0],
            // LIFETIME: 0 seconds.
            Method::Refresh => &[0, 0x0d, 0, 4, 0, 0, 0, 0],
        };
        let length = u8::try_from(attribute.len()).unwrap_or(0);
        let mut bytes = vec![0, method as u8, 0, length];
        bytes.extend(COOKIE);
        let mut transaction = [0; 12];
        fastrand::fill(&mut transaction);
        bytes.extend(transaction);
        bytes.extend(attribute);
        Request { method, bytes }
    }

    /// Makes the request at least so many bytes long, by an attribute that nobody has and nobody needs to
    /// understand.
    pub(crate) fn padded(mut self, length: usize) -> Self {
        let missing = length.saturating_sub(self.bytes.len() + 4) & !3;
        if let Ok(missing) = u8::try_from(missing) {
            self.bytes.extend([0xff, 0x01, 0, missing]);
            self.bytes.extend(std::iter::repeat_n(b' ', missing.into()));
            let body = self.bytes.len() - HEADER;
            self.bytes[2..4].copy_from_slice(&u16::try_from(body).unwrap_or(0).to_be_bytes());
        }
        self
    }

    /// Returns the address that a request seems to come from, if an answer tells (XOR-MAPPED-ADDRESS).
    pub(crate) fn mapped(&self, message: &[u8]) -> Option<SocketAddr> {
        self.answer(message)?;
        let mut rest = message.get(HEADER..)?;
        while let Some((head, after)) = rest.split_first_chunk::<4>() {
            let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
            let value = after.get(..length)?;
            if head[..2] == [0, 0x20] {
                return self.unmask(value);
            }
            rest = after.get(length.next_multiple_of(4)..)?;
        }
        None
    }

    /// Reads the value of XOR-MAPPED-ADDRESS (RFC 8489, section 14.2).
    fn unmask(&self, value: &[u8]) -> Option<SocketAddr> {
        let (head, address) = value.split_first_chunk::<4>()?;
        let port = u16::from_be_bytes([head[2] ^ COOKIE[0], head[3] ^ COOKIE[1]]);
        let mask = &self.bytes[4..HEADER];
        let bytes: Vec<u8> = address
            .iter()
            .zip(mask)
            .map(|(byte, mask)| byte ^ mask)
            .collect();
        let address = match head[1] {
            1 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
            2 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
            _ => return None,
        };
        Some(SocketAddr::new(address, port))
    }

    /// Returns how a message answers the request, if it does.
    pub(crate) fn answer(&self, message: &[u8]) -> Option<Answer> {
        let header = message.get(..HEADER)?;
        if header.get(4..) != self.bytes.get(4..HEADER) {
            return None;
        }
        match (header[0], header[1] & !(self.method as u8)) {
            _ if header[1] & 0x0f != self.method as u8 => None,
            (1, SUCCESS) => Some(Answer::Success),
            (1, ERROR) => Some(Answer::Error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response to a request: its type, and the request's transaction.
    fn response(kind: [u8; 2], request: &Request) -> Vec<u8> {
        [&kind, &[0, 0][..], &request.bytes[4..20]].concat()
    }

    #[test]
    fn only_responses_to_the_request_are_answers() {
        for (method, success, error) in [
            (Method::Binding, 0x01, 0x11),
            (Method::Allocate, 0x03, 0x13),
            (Method::Refresh, 0x04, 0x14),
        ] {
            let request = Request::new(method);
            for low in 0..=255 {
                let expected = match low {
                    low if low == success => Some(Answer::Success),
                    low if low == error => Some(Answer::Error),
                    _ => None,
                };
                let answer = |high| request.answer(&response([high, low], &request));
                assert_eq!(answer(1), expected, "{method:?} {low:#x}");
                assert_eq!(answer(0), None, "a request, or an indication: {low:#x}");
            }
            let whole = response([1, success], &request);
            assert_eq!(request.answer(&whole[..19]), None);
            assert_eq!(
                Request::new(method).answer(&whole),
                None,
                "another transaction"
            );
        }
    }

    #[test]
    fn answers_tell_the_public_address() {
        let request = Request::new(Method::Binding);
        let mask: Vec<u8> = request.bytes[4..20].to_vec();
        for address in ["203.0.113.9:50000", "[2001:db8::9]:50000"] {
            let address: SocketAddr = address.parse().unwrap();
            let (family, bytes) = match address.ip() {
                IpAddr::V4(address) => (1, address.octets().to_vec()),
                IpAddr::V6(address) => (2, address.octets().to_vec()),
            };
            let port = address.port().to_be_bytes();
            let masked = |bytes: &[u8]| -> Vec<u8> {
                bytes
                    .iter()
                    .zip(&mask)
                    .map(|(byte, mask)| byte ^ mask)
                    .collect()
            };
            let mut value = vec![0, family];
            value.extend(masked(&port));
            value.extend(masked(&bytes));
            let length = u8::try_from(value.len()).unwrap();
            // Behind an attribute whose length is no multiple of four.
            let attributes = [
                &[0x80, 0x22, 0, 1, b'x', 0, 0, 0, 0, 0x20, 0, length],
                &value[..],
            ]
            .concat();
            let answer = [response([1, 1], &request), attributes].concat();
            assert_eq!(request.mapped(&answer), Some(address));
            for end in 0..answer.len() {
                assert_eq!(request.mapped(&answer[..end]), None, "cut off at {end}");
            }
        }
    }

    #[test]
    fn requests_have_the_length_that_they_say() {
        for method in [Method::Binding, Method::Allocate, Method::Refresh] {
            let Request { bytes, .. } = Request::new(method);
            assert_eq!(bytes.len(), HEADER + usize::from(bytes[3]));
            assert_eq!(bytes[4..8], COOKIE);
            let long = Request::new(method).padded(172);
            assert_eq!((long.bytes.len(), long.bytes[3]), (172, 152));
        }
    }
}
