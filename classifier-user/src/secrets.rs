//! Secrets, which have no place in what is shown, logged or sent to somebody.

/// The text without what stands for a user and a password in URLs (`http://user:password@host`, and `user:password@host` as
/// proxies may be given), and without their queries (`?token=secret`).
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

/// The text of a firewall's rules without their comments, in which anything may be: those of nftables and of iptables-save.
pub fn without_comments(rules: &str) -> String {
    let mut shown = String::with_capacity(rules.len());
    let mut rest = rules;
    while let Some(start) = rest.find(COMMENT) {
        let (before, after) = rest.split_at(start + COMMENT.len());
        shown.push_str(before);
        let value = after.trim_start_matches(' ');
        shown.push_str(&after[..after.len() - value.len()]);
        let end = match value.strip_prefix('"') {
            Some(quoted) => 1 + closing_quote(quoted),
            // The match of iptables, whose option follows.
            None if value.starts_with("--") => 0,
            None => value.find(char::is_whitespace).unwrap_or(value.len()),
        };
        shown.push_str(if end > 0 { "***" } else { "" });
        rest = &value[end..];
    }
    shown + rest
}

const COMMENT: &str = "comment ";

/// Returns where what is behind a quoted text's first quote goes on, behind the last one.
fn closing_quote(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// Returns whether a URL ends there at the latest. An apostrophe may be part of a password.
fn is_end(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '<' | '>' | '`')
}

fn with_scheme(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (before, after) = rest.split_at(start + 3);
        shown.push_str(before);
        let (url, further) = after.split_at(after.find(is_end).unwrap_or(after.len()));
        let url = match userinfo(url) {
            Some(at) => {
                shown.push_str("***");
                &url[at..]
            }
            None => url,
        };
        // A query may have a token or a signature.
        match url.split_once('?') {
            Some((before, query)) if query.contains('=') => {
                shown.push_str(before);
                shown.push_str("?***");
            }
            _ => shown.push_str(url),
        }
        rest = further;
    }
    shown + rest
}

/// Returns where the `@` is behind the user and password of a URL, if it has them. A password may have a slash in it, although it must
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
    fn comments_of_rules_are_gone() {
        let rules = "tcp dport 22 accept comment \"Bob's \\\"key\\\" 1234\"\n-A INPUT -m comment --comment bob -j ACCEPT\n\
             -A INPUT -m comment --comment \"to bob\" -j DROP";
        assert_eq!(
            without_comments(rules),
            "tcp dport 22 accept comment ***\n-A INPUT -m comment --comment *** -j ACCEPT\n\
             -A INPUT -m comment --comment *** -j DROP"
        );
    }

    #[test]
    fn passwords_in_urls_are_gone() {
        let text = "proxy = \"http://me:p@ss@proxy:8080\"\nsource = \"https://x/a@b\" # http://a:b@c https://x:443/a@b \
             http://me:p/ss@host/x http://[::1]/a@b";
        assert_eq!(
            masked(text),
            "proxy = \"http://***@proxy:8080\"\nsource = \"https://x/a@b\" # http://***@c https://x:443/a@b \
             http://***@host/x http://[::1]/a@b"
        );
        let text = "https://mirror/list?token=s3cret&x=1 \"http://a:b@c/d?sig=1\" https://x/?page";
        assert_eq!(
            masked(text),
            "https://mirror/list?*** \"http://***@c/d?***\" https://x/?page"
        );
        let text = "proxy = \"me:it's@proxy:8080\" http://me:it's@host veth0@if3: 10:15 user@host";
        assert_eq!(
            masked(text),
            "proxy = \"***@proxy:8080\" http://***@host veth0@if3: 10:15 user@host"
        );
    }
}
