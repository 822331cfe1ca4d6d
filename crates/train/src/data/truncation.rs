//! How many tokens of a text or a pair fit into a length: longest first, as in `transformers`. The cutting is the tokeniser's.

/// How many of `n1` and `n2` tokens fit into `room`: the shorter text is whole if it needs at most half.
pub(super) fn longest_first(n1: usize, n2: usize, room: usize) -> (usize, usize) {
    let half = room / 2;
    if n1 + n2 <= room {
        (n1, n2)
    } else if n1 <= half {
        (n1, room - n1)
    } else if n2 <= half {
        (room - n2, n2)
    } else if n1 > n2 {
        (room - half, half)
    } else {
        (half, room - half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::Encoding;
    use tokenizers::utils::truncation::{TruncationParams, truncate_encodings};

    proptest! {
        #![proptest_config(super::super::fixed_cases())]

        #[test]
        fn truncation_agrees_with_the_library(n1 in 0..40_usize, n2 in 0..40_usize, room in 1..50_usize) {
            let tokens = |n: usize| {
                let token = |i| tokenizers::Token::new(i as u32, String::new(), (0, 0));
                Encoding::from_tokens((0..n).map(token).collect(), 0)
            };
            let params = TruncationParams { max_length: room, ..TruncationParams::default() };
            let (a, b) = truncate_encodings(tokens(n1), Some(tokens(n2)), &params).unwrap();
            prop_assert_eq!(longest_first(n1, n2, room), (a.len(), b.unwrap().len()));
            let (a, _) = truncate_encodings(tokens(n1), None, &params).unwrap();
            prop_assert_eq!(longest_first(n1, 0, room), (a.len(), 0));
        }
    }
}
