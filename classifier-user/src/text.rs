//! Text as editors and other systems save it.

use std::borrow::Cow;

/// Decodes UTF-8 or UTF-16, with or without a byte order mark.
///
/// # Errors
///
/// Says which encoding the text breaks, and where.
pub fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    // Text of any use here begins with an ASCII character, so that a zero beside it shows the order of bytes.
    match bytes {
        [0xef, 0xbb, 0xbf, text @ ..] => utf8(text),
        [0xff, 0xfe, text @ ..] => utf16(text, u16::from_le_bytes),
        [0xfe, 0xff, text @ ..] => utf16(text, u16::from_be_bytes),
        [first, 0, ..] if *first != 0 => utf16(bytes, u16::from_le_bytes),
        [0, second, ..] if *second != 0 => utf16(bytes, u16::from_be_bytes),
        text => utf8(text),
    }
}

fn utf8(text: &[u8]) -> Result<Cow<'_, str>, String> {
    let decoded = std::str::from_utf8(text);
    let decoded = decoded.map_err(|error| {
        let at = error.valid_up_to();
        let line = text[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("it is not UTF-8 from line {line} on (byte {at})")
    });
    Ok(Cow::Borrowed(decoded?))
}

fn utf16(text: &[u8], unit: impl Fn([u8; 2]) -> u16) -> Result<Cow<'_, str>, String> {
    let pairs = text.chunks_exact(2);
    let is_whole = pairs.remainder().is_empty();
    let units = pairs.map(|pair| unit([pair[0], pair[1]]));
    match char::decode_utf16(units).collect::<Result<String, _>>() {
        Ok(decoded) if is_whole => Ok(Cow::Owned(decoded)),
        _ => Err("it looks like UTF-16, but is damaged; save it as UTF-8".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_in_every_encoding() {
        let text = "[1] # ä";
        let units = || text.encode_utf16();
        let little: Vec<u8> = units().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = units().flat_map(u16::to_be_bytes).collect();
        let marked = |mark: &[u8], text: &[u8]| [mark, text].concat();
        for bytes in [
            text.as_bytes().to_vec(),
            marked(b"\xef\xbb\xbf", text.as_bytes()),
            little.clone(),
            big.clone(),
            marked(b"\xff\xfe", &little),
            marked(b"\xfe\xff", &big),
        ] {
            assert_eq!(decode(&bytes).unwrap(), text);
        }
        assert!(decode(b"ab\ncd\xff").unwrap_err().contains("line 2"));
        assert!(decode(b"\xff\xfea\0b").unwrap_err().contains("UTF-16"));
        assert!(decode(b"\xff\xfe\x00\xd8").unwrap_err().contains("UTF-16"));
    }
}
