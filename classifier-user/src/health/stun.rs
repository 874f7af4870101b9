//! STUN and TURN messages (RFC 8489, RFC 8656), as far as probes need them: requests without authentication, and what answers
//! them. Integers are in network byte order.

/// The magic cookie of all messages (RFC 8489, section 5).
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// The header: type, length of what follows, cookie, transaction id.
const HEADER: usize = 20;

/// The class of a success response, and that of an error response, within a message's type (RFC 8489, section 5).
const SUCCESS: u8 = 0x00;
const ERROR: u8 = 0x10;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// Which address the request came from (RFC 8489).
    Binding = 1,
    /// An address to relay to and from (RFC 8656): what Teams' clients ask its relays for.
    Allocate = 3,
    /// To hold an allocation longer, or to give it up.
    Refresh = 4,
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Success,
    Error,
}

/// A request of its own transaction.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) bytes: Vec<u8>,
}

impl Request {
    pub(super) fn new(method: Method) -> Self {
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

    /// How a message answers the request, if it does.
    pub(super) fn answer(&self, message: &[u8]) -> Option<Answer> {
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
    fn requests_have_the_length_that_they_say() {
        for method in [Method::Binding, Method::Allocate, Method::Refresh] {
            let Request { bytes, .. } = Request::new(method);
            assert_eq!(bytes.len(), HEADER + usize::from(bytes[3]));
            assert_eq!(bytes[4..8], COOKIE);
        }
    }
}
