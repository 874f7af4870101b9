//! Text from outside, made fit for one line of a terminal or of another program's configuration.

use std::borrow::Cow;

/// The text with every character that does not stay on its line, or does not show, written as `\u{...}`.
///
/// That is what Unicode calls control (`Cc`), line and paragraph separators, and the characters that turn the direction
/// of writing round. Line feeds end a comment in what `breakout export` writes; escape sequences rewrite a terminal.
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if is_harmful(character) {
            plain.extend(character.escape_unicode());
        } else {
            plain.push(character);
        }
    }
    Cow::Owned(plain)
}

/// [`plain`], for text that is kept.
pub fn into_plain(text: String) -> String {
    if text.contains(is_harmful) {
        plain(&text).into_owned()
    } else {
        text
    }
}

/// [`plain`] text of at most so many characters, for messages.
pub fn short(text: &str, most: usize) -> String {
    let mut short: String = text.chars().take(most).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    into_plain(short)
}

fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
                | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_stays_one_line() {
        assert_eq!(plain("Exchange, Zürich 日本"), "Exchange, Zürich 日本");
        assert_eq!(
            plain("a\n\r\u{1b}[2J\u{85}\u{2028}\u{202e}b"),
            "a\\u{a}\\u{d}\\u{1b}[2J\\u{85}\\u{2028}\\u{202e}b"
        );
        assert_eq!(into_plain("a\0".to_owned()), "a\\u{0}");
    }
}
