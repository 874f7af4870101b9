//! Users and passwords in URLs, which have no place in what is shown, logged or sent to somebody.

/// The text without what stands for a user and a password in URLs: `http://user:password@host`.
pub fn masked(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (before, after) = rest.split_at(start + 3);
        shown.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '`'))
            .unwrap_or(after.len());
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
    }
}
