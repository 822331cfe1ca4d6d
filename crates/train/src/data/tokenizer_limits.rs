//! What a `tokenizer.json` may ask for: a file of a few bytes must not take all memory.

use serde_json::Value;

/// By how much the steps of a normalizer or decoder may lengthen a text, all together.
const MOST_GROWTH: u64 = 1 << 16;

/// Errors, in words, if a part of the file could need memory out of all proportion.
pub(super) fn check(normalizer: &Value, decoder: &Value) -> Result<(), String> {
    for (name, part) in [("normalizer", normalizer), ("decoder", decoder)] {
        let growth = growth(part).map_err(|why| format!("{name}: {why}"))?;
        if growth > MOST_GROWTH {
            return Err(format!("{name}: its steps make a text longer by more than {MOST_GROWTH} times"));
        }
    }
    Ok(())
}

/// By how much a part can lengthen a text.
fn growth(part: &Value) -> Result<u64, String> {
    let text = |key: &str| part.get(key).and_then(Value::as_str);
    let length = |text: &str| text.len() as u64;
    match text("type") {
        Some("Precompiled") => charsmap_growth(text("precompiled_charsmap").unwrap_or_default()),
        Some("Replace") => {
            let content = text("content").map_or(0, length);
            Ok(match part.get("pattern").and_then(|p| p.get("String")).and_then(Value::as_str) {
                Some(pattern) => content.div_ceil(length(pattern).max(1)).max(1),
                // a regular expression may match between all characters
                None => content + 1,
            })
        }
        Some("Prepend") => Ok(text("prepend").map_or(0, length) + 1),
        // canonical and compatible forms, byte names
        Some("NFD" | "NFC" | "NFKD" | "NFKC" | "Nmt" | "BertNormalizer" | "Lowercase") => Ok(4),
        Some("ByteLevel") => Ok(2),
        _ => {
            let steps = ["normalizers", "decoders"].iter().filter_map(|key| part.get(key)?.as_array()).flatten();
            steps.map(growth).try_fold(1_u64, |product, factor| Ok(product.saturating_mul(factor?)))
        }
    }
}

/// The longest text that a SentencePiece table writes for a character. The table is a length in bytes, as many bytes of a trie, and texts
/// that each end in a zero byte.
fn charsmap_growth(base64: &str) -> Result<u64, String> {
    let bytes = decoded(base64).ok_or("precompiled_charsmap is not base64")?;
    let damaged = "precompiled_charsmap is damaged: it is shorter than it says";
    let (length, rest) = bytes.split_first_chunk().ok_or(damaged)?;
    let texts = rest.get(u32::from_le_bytes(*length) as usize..).ok_or(damaged)?;
    Ok(texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0).max(1) as u64)
}

fn decoded(base64: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(base64.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for c in base64.trim_end_matches('=').bytes() {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, count) = (bits << 6 | u32::from(digit), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn says(normalizer: &Value) -> String {
        check(normalizer, &Value::Null).err().unwrap_or_default()
    }

    #[test]
    fn texts_do_not_explode() {
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        assert_eq!(says(&json!({"type": "Sequence", "normalizers": vec![double.clone(); 16]})), "");
        let nested = json!({"type": "Sequence", "normalizers": vec![json!({"type": "Sequence", "normalizers": vec![double; 5]}); 5]});
        assert!(says(&nested).contains("longer by more than 65536 times"), "{}", says(&nested));
        assert_eq!(says(&Value::Null), "");
        let regex = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "x".repeat(1 << 16)});
        assert!(check(&Value::Null, &regex).unwrap_err().starts_with("decoder: "));
    }

    /// A trie of one unit and the texts "ab" and "c".
    #[test]
    fn a_table_of_characters_is_as_long_as_it_says() {
        let table = |base64: &str| says(&json!({"type": "Precompiled", "precompiled_charsmap": base64}));
        assert_eq!(decoded("BAAAAAAAAABhYgBjAA==").unwrap(), b"\x04\0\0\0\0\0\0\0ab\0c\0");
        assert_eq!(charsmap_growth("BAAAAAAAAABhYgBjAA=="), Ok(2));
        assert_eq!(table("BAAAAAAAAABhYgBjAA=="), "");
        for bad in ["", "BAA", "/////wAAAABhYgBjAA==", "EAAAAAAAAABhYgBjAA=="] {
            assert!(table(bad).contains("shorter than it says"), "{bad}");
        }
        assert!(table("BA$A").contains("not base64"));
    }
}
