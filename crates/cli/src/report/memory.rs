//! The report's memory section: what is kept by layer and op, and what is live over a step.

use super::load::{LedgerEntry, Moment, Run};
use super::sites::{self, LayerRow};
use super::svg::{self, Bar, COLOURS, Slice, colour_class, escape};
use super::{Named, figure, legend};
use crate::units;
use std::fmt::Write;

/// Classes of memory from the bottom of the chart, what lives longest first, with their colours.
const CLASSES: [(&str, usize); 6] =
    [("weights", 7), ("optimizer", 0), ("gradients", 5), ("cache", 3), ("kept", 1), ("workspace", 4)];

/// The section of the page.
pub(super) fn section(runs: &[Named]) -> String {
    let told = |n: &&Named| !n.run.list(|s| &s.ledger).is_empty() || !n.run.list(|s| &s.timeline).is_empty();
    let told: Vec<&Named> = runs.iter().filter(told).collect();
    let by_class = peak_by_class(runs);
    if told.is_empty() && by_class.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<h2>Memory</h2>\n<p>Bars: what the ops of each layer keep from the forward pass for the backward pass. \
         Areas: everything that is live during one step.",
    );
    html += if told.len() > 1 { " All runs are drawn to one scale.</p>" } else { "</p>" };
    let rows: Vec<Vec<LayerRow>> = told.iter().map(|n| sites::by_layer(n.run.list(|s| &s.ledger))).collect();
    let ops = ops(&rows);
    let most_kept = rows.iter().flatten().map(LayerRow::total).max().unwrap_or(0);
    let live = |n: &&Named| {
        let highest =
            n.run.list(|s| &s.timeline).iter().map(|m| m.live.values().fold(0u64, |a, b| a.saturating_add(*b))).max();
        highest.max(n.run.peak_bytes())
    };
    let most_live = told.iter().filter_map(live).max().unwrap_or(0);
    for (named, rows) in told.iter().zip(&rows) {
        if runs.len() > 1 {
            let _ = write!(html, "<h3>{}</h3>", escape(&named.name));
        }
        html += "<div class=\"charts\">";
        html += &figure("Kept bytes by layer and op", "", &kept_chart(rows, &ops, most_kept));
        html += &figure("Live bytes over a step, by class", "", &live_chart(named.run, most_live));
        html += "</div>";
        html += &kept_tables(named.run, rows, &ops);
    }
    html + &by_class
}

/// Every op of the ledgers, most kept bytes first, so that the largest have colours of their own.
fn ops(rows: &[Vec<LayerRow>]) -> Vec<String> {
    let mut ops: Vec<(String, u64)> = Vec::new();
    for (op, bytes) in rows.iter().flatten().flat_map(|r| &r.ops) {
        match ops.iter_mut().find(|o| o.0 == *op) {
            Some(known) => known.1 = known.1.saturating_add(*bytes),
            None => ops.push((op.clone(), *bytes)),
        }
    }
    ops.sort_by_key(|o| std::cmp::Reverse(o.1));
    ops.into_iter().map(|o| o.0).collect()
}

fn kept_chart(rows: &[LayerRow], ops: &[String], most: u64) -> String {
    let own = if ops.len() > COLOURS { COLOURS - 1 } else { ops.len() };
    let (named, others) = ops.split_at(own);
    let parts = |row: &LayerRow| {
        let mut parts: Vec<_> = named.iter().enumerate().map(|(i, op)| (op.clone(), i, row.bytes(op))).collect();
        if !others.is_empty() {
            let bytes = others.iter().fold(0u64, |sum, op| sum.saturating_add(row.bytes(op)));
            parts.push(("other ops".to_string(), own, bytes));
        }
        parts
    };
    let bars: Vec<Bar> = rows.iter().map(|r| Bar { label: r.label.clone(), parts: parts(r) }).collect();
    let mut used: Vec<(usize, &str)> = Vec::new();
    for (name, colour, _) in bars.iter().flat_map(|b| &b.parts).filter(|p| p.2 > 0) {
        if !used.contains(&(*colour, name)) {
            used.push((*colour, name));
        }
    }
    used.sort_unstable();
    let chart = svg::bar_chart("kept bytes by layer and op", &bars, most);
    legend(used.iter().map(|(colour, name)| (colour_box(*colour), name.to_string()))) + &chart
}

fn live_chart(run: &Run, most: u64) -> String {
    let timeline = run.list(|s| &s.timeline);
    let mut layers: Vec<(String, usize)> = CLASSES.iter().map(|c| (c.0.to_string(), c.1)).collect();
    for class in timeline.iter().flat_map(|m| m.live.keys()) {
        if !layers.iter().any(|l| l.0 == *class) {
            layers.push((class.clone(), [2, 6][layers.len() % 2]));
        }
    }
    layers.retain(|l| timeline.iter().any(|m| m.live.get(&l.0).is_some_and(|b| *b > 0)));
    let slice = |m: &Moment| Slice {
        phase: m.phase.clone(),
        at: m.at.clone(),
        bytes: layers.iter().map(|l| m.live.get(&l.0).copied().unwrap_or(0)).collect(),
    };
    let slices: Vec<Slice> = timeline.iter().map(slice).collect();
    let peak = run.peak_bytes().map(|b| (b, format!("peak {}", units::bytes(b))));
    let chart = svg::area_chart("live bytes over a step, by class", &layers, &slices, peak, most);
    legend(layers.iter().rev().map(|l| (colour_box(l.1), l.0.clone()))) + &chart
}

fn kept_tables(run: &Run, rows: &[LayerRow], ops: &[String]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<details><summary>Kept bytes in numbers</summary><div class=\"scroll\"><table><thead><tr><th>Layer</th>",
    );
    for op in ops {
        let _ = write!(html, "<th>{}</th>", escape(op));
    }
    html += "<th>Total</th></tr></thead><tbody>";
    let cell = |bytes: u64| {
        if bytes == 0 {
            return "<td class=\"soft\">0</td>".to_string();
        }
        format!("<td title=\"{} bytes\">{}</td>", units::count(bytes), units::bytes(bytes))
    };
    let line = |label: &str, bytes: &dyn Fn(&str) -> u64, total: u64| {
        let cells: String = ops.iter().map(|op| cell(bytes(op))).collect();
        format!("<tr><th>{}</th>{cells}{}</tr>", escape(label), cell(total))
    };
    for row in rows {
        html += &line(&row.label, &|op| row.bytes(op), row.total());
    }
    let sum = |bytes: &dyn Fn(&LayerRow) -> u64| rows.iter().fold(0u64, |sum, r| sum.saturating_add(bytes(r)));
    let all = line("Total", &|op| sum(&|r| r.bytes(op)), sum(&LayerRow::total));
    let _ = write!(html, "</tbody><tfoot>{all}</tfoot></table></div>");
    html += "<div class=\"scroll\"><table><thead><tr><th>Site</th><th class=\"text\">Op</th><th class=\"text\">What</th>\
             <th class=\"text\">Kept as</th><th>Bytes</th><th>Times</th><th>Total</th></tr></thead><tbody>";
    let entry = |e: &LedgerEntry| (e.site.clone(), (e.op.clone(), e.what.clone(), sites::keep_words(&e.keep), e.bytes));
    for (site, times, (op, what, keep, bytes)) in
        sites::join_layers(run.list(|s| &s.ledger).iter().map(entry).collect())
    {
        let _ = write!(
            html,
            "<tr><th>{}</th><td class=\"text\">{}</td><td class=\"text\">{}</td><td class=\"text\">{}</td>{}<td>{times}</td>{}</tr>",
            escape(&site),
            escape(&op),
            escape(&what),
            escape(&keep),
            cell(bytes),
            cell(bytes.saturating_mul(times as u64))
        );
    }
    html + "</tbody></table></div></details>"
}

fn peak_by_class(runs: &[Named]) -> String {
    let of = |n: &Named, class: &str| n.run.of(|s| s.peak_bytes_by_class.get(class).copied());
    let mut classes: Vec<&str> = CLASSES.iter().map(|c| c.0).collect();
    let told = runs.iter().filter_map(|n| n.run.summary.as_ref()).flat_map(|s| s.peak_bytes_by_class.keys());
    for class in told {
        if !classes.contains(&class.as_str()) {
            classes.push(class);
        }
    }
    classes.retain(|c| runs.iter().any(|n| of(n, c).is_some()));
    if classes.is_empty() {
        return String::new();
    }
    let mut html = String::from("<h3>Peak by class</h3><div class=\"scroll\"><table><thead><tr><th>Class</th>");
    for n in runs {
        let _ = write!(html, "<th>{}</th>", escape(&n.name));
    }
    html += "</tr></thead><tbody>";
    for class in classes {
        let _ = write!(html, "<tr><th>{}</th>", escape(class));
        for n in runs {
            let _ = write!(html, "<td>{}</td>", of(n, class).map_or(units::ABSENT.into(), units::bytes));
        }
        html += "</tr>";
    }
    html + "</tbody></table></div>"
}

fn colour_box(colour: usize) -> String {
    format!("<i class=\"box {}\"></i>", colour_class(colour))
}
