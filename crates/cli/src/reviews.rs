//! Makes a sentiment task of the movie-review snippets of Hutto & Gilbert (ICWSM 2014).

use std::collections::HashSet;
use std::fmt::Write;

use colrow_tensor::{Error, Result};

use crate::conversations::order;

/// Snippets whose mean rating lies nearer to 0 than this are left out: their raters did not agree on a side, or saw none.
/// Half a step of the scale, which runs from −4 to 4 in whole steps.
const NEUTRAL: f64 = 0.5;
const SCALE: f64 = 4.0;
/// The development set is this share of the snippets, but never larger than [`MAX_DEV`], so that evaluating is quick.
const DEV_SHARE: f64 = 0.15;
const MAX_DEV: usize = 1000;
/// The task's files, each as its whole text.
#[derive(Debug)]
pub(crate) struct Split {
    /// Header `sentence<TAB>label`, then one snippet a line; label 1 is positive, 0 negative.
    pub(crate) train: String,
    /// As `train`.
    pub(crate) dev: String,
    /// Where the data comes from and how it was split.
    pub(crate) readme: String,
}

/// Splits the published file: UTF-8 lines of id, mean rating and text, separated by tabs.
///
/// Each snippet stands for a review of its own, and the file's order says nothing about the film (neighbours share no
/// more names than distant lines do), so the split goes by a hash of the id. Of equal texts only the first is used.
///
/// # Errors
/// When the bytes are not UTF-8, a line has another number of columns, or a rating is not a number from −4 to 4.
pub(crate) fn split(bytes: &[u8]) -> Result<Split> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = 1 + bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count();
        Error::new("expected UTF-8").at(format!("line {line}"))
    })?;
    let mut snippets = Vec::new();
    let mut seen = HashSet::new();
    let (mut neutral, mut repeated) = (0, 0);
    for (i, line) in text.lines().enumerate() {
        let (id, mean, text) = columns(line).map_err(|e| e.at(format!("line {}", i + 1)))?;
        if mean.abs() < NEUTRAL {
            neutral += 1;
        } else if !seen.insert(text) {
            repeated += 1;
        } else {
            snippets.push((order(id), text, u8::from(mean > 0.0)));
        }
    }
    // Hash order also mixes the labels: the published file has the positive reviews first.
    snippets.sort_unstable();
    let dev = ((snippets.len() as f64 * DEV_SHARE) as usize).min(MAX_DEV);
    let (dev, train) = snippets.split_at(dev);
    Ok(Split { train: tsv(train), dev: tsv(dev), readme: readme(train, dev, neutral, repeated) })
}

fn columns(line: &str) -> Result<(&str, f64, &str)> {
    let columns: Vec<&str> = line.split('\t').collect();
    let &[id, mean, text] = &columns[..] else {
        return Err(Error::new(format!("expected 3 columns separated by tabs, found {}", columns.len())));
    };
    match mean.parse::<f64>() {
        Ok(rating) if rating.abs() <= SCALE => Ok((id, rating, text.trim())),
        _ => Err(Error::new(format!("expected a mean rating from -4 to 4, found {mean:?}"))),
    }
}

type Snippet<'a> = (u64, &'a str, u8);

fn tsv(snippets: &[Snippet]) -> String {
    let mut out = String::from("sentence\tlabel\n");
    for (_, text, label) in snippets {
        let _ = writeln!(out, "{text}\t{label}");
    }
    out
}

fn readme(train: &[Snippet], dev: &[Snippet], neutral: usize, repeated: usize) -> String {
    let count = |s: &[Snippet]| {
        let positive = s.iter().filter(|x| x.2 == 1).count();
        format!("{} examples, {positive} positive and {} negative", s.len(), s.len() - positive)
    };
    format!(
        "Movie-review snippets with a positive (1) or negative (0) label.

train.tsv  {}
dev.tsv    {}

Source: movieReviewSnippets_GroundTruth.txt from the data that came with
  C. J. Hutto and E. Gilbert. VADER: A Parsimonious Rule-based Model for
  Sentiment Analysis of Social Media Text. ICWSM 2014.
as distributed in the Python package vaderSentiment 2.5 (MIT licence). The
snippets are sentences from Rotten Tomatoes reviews collected by B. Pang and
L. Lee; about 20 people rated each from -4 (most negative) to 4 (most positive).

label: the sign of the mean rating. {neutral} snippets with a mean rating between
-{NEUTRAL} and {NEUTRAL} were left out, and {repeated} whose text had occurred before.
Split: by a fixed hash of the snippet's id; the same on every machine.

SST-2 is made from the same sentences: most of its development set is in these
files. Do not judge a model trained here on SST-2.
",
        count(train),
        count(dev),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` snippets: the first half positive, the second negative, as in the published file.
    fn published(n: usize) -> String {
        (0..n).map(|i| format!("{}\t{}\tsnippet {i} \r\n", i + 1, if i < n / 2 { "1.25" } else { "-2" })).collect()
    }

    fn rows(tsv: &str) -> Vec<(&str, &str)> {
        let mut lines = tsv.lines();
        assert_eq!(lines.next(), Some("sentence\tlabel"));
        lines.map(|l| l.split_once('\t').unwrap()).collect()
    }

    #[test]
    fn label_is_the_sign_and_ambiguous_snippets_are_left_out() {
        let text =
            "1\t0.5\tgood\n2\t-0.5\tbad\n3\t0.499\tso\n4\t-0.499\tlala\n5\t0.0\tnone\n6\t4\tbest\n7\t-3.9\tworst\n";
        let split = split(text.as_bytes()).unwrap();
        let mut all = rows(&split.train);
        all.extend(rows(&split.dev));
        all.sort_unstable();
        assert_eq!(all, [("bad", "0"), ("best", "1"), ("good", "1"), ("worst", "0")]);
        assert!(split.readme.contains("3 snippets with a mean rating"), "{}", split.readme);
    }

    #[test]
    fn every_snippet_is_in_one_file_and_both_labels_in_both() {
        let text = published(2000);
        let split = split(text.as_bytes()).unwrap();
        let (train, dev) = (rows(&split.train), rows(&split.dev));
        assert_eq!((train.len(), dev.len()), (1700, 300));
        let distinct: HashSet<_> = train.iter().chain(&dev).map(|r| r.0).collect();
        assert_eq!(distinct.len(), 2000);
        // 4 standard deviations of a fair draw.
        for (rows, slack) in [(&train, 82), (&dev, 35), (&train[..100].to_vec(), 20)] {
            let positive = rows.iter().filter(|r| r.1 == "1").count();
            assert!(positive.abs_diff(rows.len() / 2) <= slack, "{positive} of {} are positive", rows.len());
        }
    }

    #[test]
    fn the_development_set_is_capped() {
        let split = split(published(8000).as_bytes()).unwrap();
        assert_eq!(rows(&split.dev).len(), MAX_DEV);
        assert!(split.readme.contains("dev.tsv    1000 examples"), "{}", split.readme);
    }

    #[test]
    fn the_split_depends_on_the_id_alone() {
        let text = published(40);
        let mut lines: Vec<&str> = text.lines().collect();
        let one = split(text.as_bytes()).unwrap();
        lines.reverse();
        assert_eq!(split(lines.join("\n").as_bytes()).unwrap().dev, one.dev);
        // Fixed: figures reported on this split stay comparable.
        assert_eq!(order("1"), 0x2b77_b078_3818_5d32);
    }

    #[test]
    fn repeated_text_is_used_once() {
        let split = split(b"1\t1\tsame\n2\t2\tsame\n3\t1\tother\n").unwrap();
        assert_eq!(rows(&split.train).len() + rows(&split.dev).len(), 2);
        assert!(split.readme.contains("and 1 whose text had occurred before"), "{}", split.readme);
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, what) in [
            (&b"1\t1\ta\n2\t1\n"[..], "expected 3 columns separated by tabs, found 2\n  in line 2"),
            (b"1\t1\ta\tb\n", "expected 3 columns separated by tabs, found 4\n  in line 1"),
            (b"1\tgood\ta\n", "expected a mean rating from -4 to 4, found \"good\"\n  in line 1"),
            (b"1\tnan\ta\n", "found \"nan\""),
            (b"1\t4.5\ta\n", "found \"4.5\""),
            (b"1\t1\ta\n2\t1\tclich\xe9\n", "expected UTF-8\n  in line 2"),
        ] {
            let e = split(text).unwrap_err().to_string();
            assert!(e.contains(what), "{e}");
        }
        assert_eq!(rows(&split(b"").unwrap().train).len(), 0);
    }
}
