//! SentencePiece's BPE in the words of `tokenizer.json`: merges follow from scores, and scores from merges.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::vocabulary::Kind;

/// All pairs of tokens whose texts together are a token, in the order in which they merge: the result with the highest score first; of one
/// result, the longest left part. Only pieces of text merge.
pub(super) fn merges(tokens: &[Option<(String, Kind)>], scores: &[f32]) -> Vec<(String, String)> {
    let pieces = || {
        let normal = |(id, token): (usize, &'_ Option<(String, Kind)>)| match token {
            Some((_, Kind::Normal)) => Some(id),
            _ => None,
        };
        tokens.iter().enumerate().filter_map(normal)
    };
    let text = |id: usize| tokens[id].as_ref().map_or("", |(text, _)| text);
    let is_piece: HashMap<&str, usize> = pieces().map(|id| (text(id), id)).collect();
    let mut found = Vec::new();
    for id in pieces() {
        let whole = text(id);
        for (at, _) in whole.char_indices().skip(1) {
            let (left, right) = whole.split_at(at);
            if is_piece.contains_key(left) && is_piece.contains_key(right) {
                found.push((scores[id], left, right));
            }
        }
    }
    // a stable sort: equal scores stay in the order of the vocabulary
    found.sort_by(|a, b| {
        let lengths = |x: &(f32, &str, &str)| Reverse((x.1.chars().count(), x.2.chars().count()));
        b.0.total_cmp(&a.0).then_with(|| lengths(a).cmp(&lengths(b)))
    });
    found.into_iter().map(|(_, left, right)| (left.to_string(), right.to_string())).collect()
}

/// Scores by which tokens merge in the order of `merges`.
pub(super) fn scores(tokens: &[Option<(String, Kind)>], merges: &[(String, String)]) -> Vec<f32> {
    let mut rank = HashMap::new();
    for (left, right) in merges {
        let next = rank.len();
        rank.entry(format!("{left}{right}")).or_insert(next);
    }
    let after = rank.len();
    let score = |(id, token): (usize, &Option<(String, Kind)>)| match token {
        Some((text, Kind::Normal)) => -(rank.get(text).copied().unwrap_or(after + id) as f32),
        _ => 0.0,
    };
    tokens.iter().enumerate().map(score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_and_scores_follow_from_each_other() {
        let texts = ["<unk>", "▁a", "ab", "▁ab", "▁", "a", "b"];
        let kinds = |text: &str| if text == "<unk>" { Kind::Unknown } else { Kind::Normal };
        let tokens: Vec<_> = texts.iter().map(|t| Some((t.to_string(), kinds(t)))).collect();
        let found = merges(&tokens, &[0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0]);
        let words: Vec<_> = found.iter().map(|(a, b)| format!("{a} {b}")).collect();
        assert_eq!(words, ["▁ a", "a b", "▁a b", "▁ ab"]);
        let again = scores(&tokens, &found);
        assert_eq!(again[1..4], [0.0, -1.0, -2.0]);
        assert!(again[4..].iter().all(|&score| score < -2.0));
        assert_eq!(merges(&tokens, &again), found);
    }
}
