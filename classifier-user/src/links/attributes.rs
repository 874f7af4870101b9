//! Netlink attributes as bytes (linux/netlink.h), for the families that rtnetlink does not know.

/// The bits of an attribute's type that are its number (`NLA_TYPE_MASK`); the others are flags.
const TYPE_MASK: u16 = 0x3fff;

/// Adds an attribute.
pub(super) fn put(attributes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    attributes.extend(length.to_ne_bytes());
    attributes.extend(kind.to_ne_bytes());
    attributes.extend(value);
    attributes.resize(attributes.len().next_multiple_of(4), 0);
}

/// The value of the first attribute of a kind.
pub(super) fn find(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    all(attributes, wanted).next()
}

/// The values of all attributes of a kind.
pub(super) fn all(mut attributes: &[u8], wanted: u16) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        while let [l0, l1, k0, k1, ..] = *attributes {
            let length = usize::from(u16::from_ne_bytes([l0, l1]));
            let value = attributes.get(4..length)?;
            attributes = attributes
                .get(length.next_multiple_of(4)..)
                .unwrap_or_default();
            if u16::from_ne_bytes([k0, k1]) & TYPE_MASK == wanted {
                return Some(value);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_padded_ones() {
        let mut attributes = Vec::new();
        put(&mut attributes, 7, b"abc");
        put(&mut attributes, 3 | 1 << 15, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(attributes.len(), 20);
        assert_eq!(find(&attributes, 7), Some(&b"abc"[..]));
        assert_eq!(find(&attributes, 3), Some(&[1, 2, 3, 4, 5, 6, 7, 8][..]));
        assert_eq!(find(&attributes, 4), None);
        // Lengths that lie lead nowhere.
        assert_eq!(find(&[2, 0, 9, 0], 1), None);
        assert_eq!(find(&[200, 0, 9, 0, 1], 9), None);
        assert_eq!(find(&[1], 1), None);
    }
}
