//! What each site was told to keep: a line for each policy, with the sites that have it.

use std::fmt::Write;

use super::Named;
use super::sites::{join_layers, keep_words};
use super::svg::escape;
use crate::units;

/// Sites of one policy.
struct Line {
    /// What each recipe keeps there.
    keeps: Vec<String>,
    sites: Vec<String>,
}

/// The section of the page; empty if no run tells its policy.
pub(super) fn section(runs: &[Named]) -> String {
    let mut lines = lines(runs);
    let told = |keeps: &[String]| match keeps {
        [only] => words(only),
        _ => {
            let each = runs.iter().zip(keeps).map(|(n, keep)| format!("<b>{}</b> {}", escape(&n.name), words(keep)));
            each.collect::<Vec<_>>().join(", ")
        }
    };
    let mut html = String::from("<h2>Policy</h2>\n<p>What each site was told to keep.</p>");
    match &mut lines[..] {
        [] => return String::new(),
        [Line { keeps, sites }] => {
            let (keeps, count, sites) = (told(keeps), sites.len(), names(std::mem::take(sites)));
            let _ = write!(
                html,
                "<p>All {count} sites alike: {keeps}.</p><details><summary>Sites</summary><p class=\"small\">{sites}</p></details>"
            );
            return html;
        }
        _ => {}
    }
    for Line { keeps, sites } in lines {
        let count = units::count(sites.len() as u64);
        let _ = write!(
            html,
            "<p>{}<br/><small class=\"soft\">{count} of the sites: {}</small></p>",
            told(&keeps),
            names(sites)
        );
    }
    html
}

fn words(keep: &str) -> String {
    if keep.is_empty() { units::ABSENT.into() } else { escape(keep) }
}

/// Sites that differ in their layer alone as one name.
fn names(sites: Vec<String>) -> String {
    let joined = join_layers(sites.into_iter().map(|site| (site, ())).collect());
    joined.into_iter().map(|(site, ..)| escape(&site)).collect::<Vec<_>>().join(", ")
}

/// The policies in order of their first site.
fn lines(runs: &[Named]) -> Vec<Line> {
    let mut sites: Vec<(&str, Vec<String>)> = Vec::new();
    for (i, named) in runs.iter().enumerate() {
        for policy in named.run.list(|s| &s.policy) {
            let at = sites.iter().position(|l| l.0 == policy.site).unwrap_or_else(|| {
                sites.push((&policy.site, vec![String::new(); runs.len()]));
                sites.len() - 1
            });
            sites[at].1[i] = keep_words(&policy.keep);
        }
    }
    let mut lines: Vec<Line> = Vec::new();
    for (site, keeps) in sites {
        match lines.iter_mut().find(|l| l.keeps == keeps) {
            Some(line) => line.sites.push(site.to_owned()),
            None => lines.push(Line { keeps, sites: vec![site.to_owned()] }),
        }
    }
    lines
}
