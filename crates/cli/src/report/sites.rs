//! Sites grouped for reading: by layer of the model, and equal layers as one line.

use super::load::LedgerEntry;
use serde_json::Value;

/// Kept bytes of one layer (or of one part outside the layers), by op.
#[derive(Debug, PartialEq)]
pub(super) struct LayerRow {
    /// `layer 3`, or the part's name.
    pub(super) label: String,
    /// Op and bytes, in the order of the ledger.
    pub(super) ops: Vec<(String, u64)>,
}

impl LayerRow {
    /// Bytes of one op.
    pub(super) fn bytes(&self, op: &str) -> u64 {
        self.ops.iter().find(|o| o.0 == op).map_or(0, |o| o.1)
    }

    /// Bytes of all ops.
    pub(super) fn total(&self) -> u64 {
        self.ops.iter().fold(0, |sum, o| sum.saturating_add(o.1))
    }
}

/// Sums a ledger by layer and op: layers by number where the first of them stands, other parts in order of appearance.
pub(super) fn by_layer(ledger: &[LedgerEntry]) -> Vec<LayerRow> {
    let mut rows: Vec<(Option<(String, u64)>, LayerRow)> = Vec::new();
    let mut stacks: Vec<String> = Vec::new();
    for entry in ledger {
        let layer = split_layer(&entry.site).map(|(before, number, _)| (before.to_string(), number));
        let part = || entry.site.split('.').next().unwrap_or(&entry.site).to_string();
        let label = layer.as_ref().map_or_else(part, |l| format!("{}{}", l.0, l.1));
        if let Some((stack, _)) = &layer
            && !stacks.contains(stack)
        {
            stacks.push(stack.clone());
        }
        let at = rows.iter().position(|r| r.1.label == label).unwrap_or_else(|| {
            rows.push((layer, LayerRow { label, ops: Vec::new() }));
            rows.len() - 1
        });
        let ops = &mut rows[at].1.ops;
        match ops.iter_mut().find(|o| o.0 == entry.op) {
            Some(op) => op.1 = op.1.saturating_add(entry.bytes),
            None => ops.push((entry.op.clone(), entry.bytes)),
        }
    }
    let several = stacks.len() > 1;
    for stack in stacks {
        let is_layer = |row: &(Option<(String, u64)>, LayerRow)| row.0.as_ref().is_some_and(|l| l.0 == stack);
        let first = rows.iter().position(is_layer).unwrap_or(0);
        let (mut layers, mut others): (Vec<_>, Vec<_>) = rows.into_iter().partition(is_layer);
        layers.sort_by_key(|row| row.0.as_ref().map(|l| l.1));
        for (layer, row) in &mut layers {
            let (stack, number) = layer.as_ref().map_or(("", 0), |l| (l.0.as_str(), l.1));
            let part = stack.split('.').next().unwrap_or("");
            row.label = if several { format!("{part} layer {number}") } else { format!("layer {number}") };
        }
        others.splice(first.min(others.len())..first.min(others.len()), layers);
        rows = others;
    }
    rows.into_iter().map(|r| r.1).collect()
}

/// Lines of a table whose sites differ in nothing but the layer, as one line: `encoder.layer.0–5.ffn.up`.
///
/// Takes sites with what is told of each, gives the joined names with the number of sites they stand for.
pub(super) fn join_layers<T: PartialEq>(sites: Vec<(String, T)>) -> Vec<(String, usize, T)> {
    let mut lines: Vec<(String, String, Vec<u64>, T)> = Vec::new();
    for (site, told) in sites {
        let (before, number, after) = match split_layer(&site) {
            Some((before, number, after)) => (before.to_string(), vec![number], after.to_string()),
            None => (site, Vec::new(), String::new()),
        };
        match lines.iter_mut().find(|l| l.0 == before && l.1 == after && l.3 == told && !l.2.is_empty()) {
            Some(line) => line.2.extend(number),
            None => lines.push((before, after, number, told)),
        }
    }
    let joined = lines.into_iter().map(|(before, after, mut numbers, told)| {
        let count = numbers.len().max(1);
        numbers.sort_unstable();
        (format!("{before}{}{after}", ranges(&numbers)), count, told)
    });
    joined.collect()
}

/// What a site is, whichever its layer: `encoder.layer.*.ffn.up`.
pub(super) fn kind(site: &str) -> String {
    split_layer(site).map_or_else(|| site.to_owned(), |(before, _, after)| format!("{before}*{after}"))
}

/// A policy as the summary tells it: text as it is, anything else as JSON.
pub(super) fn keep_words(keep: &Value) -> String {
    match keep {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `encoder.layer.3.ffn.up` as `("encoder.layer.", 3, ".ffn.up")`, at the first part that is a number.
fn split_layer(site: &str) -> Option<(&str, u64, &str)> {
    let mut start = 0;
    for part in site.split('.') {
        // A site that begins with a number names no stack of layers.
        if start > 0
            && let Ok(number) = part.parse()
        {
            return Some((&site[..start], number, &site[start + part.len()..]));
        }
        start += part.len() + 1;
    }
    None
}

/// Sorted numbers as `0–5, 8`.
fn ranges(numbers: &[u64]) -> String {
    let runs = numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b)).map(|run| match run {
        [first, .., last] => format!("{first}–{last}"),
        [only] => only.to_string(),
        [] => String::new(),
    });
    runs.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(site: &str, op: &str, bytes: u64) -> LedgerEntry {
        LedgerEntry { site: site.into(), op: op.into(), what: String::new(), keep: Value::Null, bytes }
    }

    fn labels(rows: &[LayerRow]) -> Vec<&str> {
        rows.iter().map(|r| r.label.as_str()).collect()
    }

    #[test]
    fn a_ledger_sums_by_layer_and_op() {
        let rows = by_layer(&[
            entry("embeddings.norm", "layer_norm", 1),
            entry("encoder.layer.10.ffn.up", "linear", 2),
            entry("encoder.layer.2.ffn.up", "linear", 3),
            entry("encoder.layer.2.ffn.down", "linear", 4),
            entry("encoder.layer.2.ffn.act", "gelu", 5),
            entry("classifier", "linear", u64::MAX),
            entry("classifier", "linear", 1),
        ]);
        assert_eq!(labels(&rows), ["embeddings", "layer 2", "layer 10", "classifier"]);
        assert_eq!((rows[1].bytes("linear"), rows[1].bytes("gelu"), rows[1].total()), (7, 5, 12));
        assert_eq!(rows[3].total(), u64::MAX);
    }

    #[test]
    fn two_stacks_of_layers_keep_their_names() {
        let rows = by_layer(&[
            entry("encoder.block.1.ffn", "linear", 1),
            entry("encoder.block.0.ffn", "linear", 1),
            entry("decoder.block.0.ffn", "linear", 1),
            entry("lm_head", "linear", 1),
        ]);
        assert_eq!(labels(&rows), ["encoder layer 0", "encoder layer 1", "decoder layer 0", "lm_head"]);
    }

    #[test]
    fn equal_layers_join() {
        let sites = [(0, "rows"), (1, "rows"), (3, "rows"), (2, "exact")];
        let sites = sites.iter().map(|(n, keep)| (format!("encoder.layer.{n}.ffn.up"), *keep));
        let joined =
            join_layers(sites.chain([("pooler".to_string(), "rows"), ("pooler".to_string(), "rows")]).collect());
        let expected = [
            ("encoder.layer.0–1, 3.ffn.up", 3, "rows"),
            ("encoder.layer.2.ffn.up", 1, "exact"),
            ("pooler", 1, "rows"),
            ("pooler", 1, "rows"),
        ];
        assert_eq!(joined.iter().map(|l| (l.0.as_str(), l.1, l.2)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn odd_sites_are_parts_of_their_own() {
        let rows = by_layer(&[
            entry("", "a", 1),
            entry("3.x", "a", 1),
            entry("..", "a", 1),
            entry("x.99999999999999999999", "a", 1),
        ]);
        assert_eq!(labels(&rows), ["", "3", "x"]);
    }
}
