//! Users and passwords in URLs, which have no place in what is shown, logged or sent to somebody.

/// The text without what stands for a user and a password in URLs: `http://user:password@host`, and `user:password@host` as
/// proxies may be given.
pub fn masked(text: &str) -> String {
    let text = with_scheme(text);
    let mut shown = String::with_capacity(text.len());
    for word in text.split_inclusive(is_end) {
        let secret = word.rfind('@').filter(|at| {
            let before = &word[..*at];
            before.contains(':') && !before.contains("://")
        });
        match secret {
            Some(at) => {
                shown.push_str("***");
                shown.push_str(&word[at..]);
            }
            None => shown.push_str(word),
        }
    }
    shown
}

/// Whether a URL ends there at the latest. An apostrophe may be part of a password.
fn is_end(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '<' | '>' | '`')
}

fn with_scheme(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (before, after) = rest.split_at(start + 3);
        shown.push_str(before);
        let end = after.find(is_end).unwrap_or(after.len());
        match userinfo(&after[..end]) {
            Some(at) => {
                shown.push_str("***");
                rest = &after[at..];
            }
            None => rest = after,
        }
    }
    shown + rest
}

/// Where the `@` is behind the user and password of a URL, if it has them. A password may have a slash in it, although it must
/// not (RFC 3986, section 3.2.1): what looks like a host with a port that is no number is a user with a password.
fn userinfo(url: &str) -> Option<usize> {
    let authority = url.split(['/', '?', '#']).next().unwrap_or(url);
    if let Some(at) = authority.rfind('@') {
        return Some(at);
    }
    let (_, port) = authority.rsplit_once(':')?;
    let is_port = port.chars().all(|c| c.is_ascii_digit());
    let is_host = authority.ends_with(']') || is_port;
    url.rfind('@').filter(|_| !is_host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_gone() {
        let text = "proxy = \"http://me:p@ss@proxy:8080\"\nsource = \"https://x/a@b\" # http://a:b@c https://x:443/a@b \
             http://me:p/ss@host/x http://[::1]/a@b";
        assert_eq!(
            masked(text),
            "proxy = \"http://***@proxy:8080\"\nsource = \"https://x/a@b\" # http://***@c https://x:443/a@b \
             http://***@host/x http://[::1]/a@b"
        );
        let text = "proxy = \"me:it's@proxy:8080\" http://me:it's@host veth0@if3: 10:15 user@host";
        assert_eq!(
            masked(text),
            "proxy = \"***@proxy:8080\" http://***@host veth0@if3: 10:15 user@host"
        );
    }
}
