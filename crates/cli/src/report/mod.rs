//! The report: one HTML page about one or several runs, complete in itself (no script, nothing to fetch).

mod axis;
mod classes;
mod estimates;
mod evidence;
mod groups;
mod load;
mod memory;
mod overview;
mod policy;
mod ratios;
#[cfg(test)]
mod sample;
mod scatter;
mod sites;
mod svg;

pub(crate) use groups::{Group, Spread, groups};
pub(crate) use load::Run;

use crate::{output, units};
use colrow_models::apart;
use colrow_models::atomic::write_atomic;
use colrow_tensor::Result;
use colrow_train::inspect::Evidence;
use load::Summary;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use svg::{Points, Series, escape};

/// A value of a logged step.
type Field = fn(&load::TrainPoint) -> Option<f64>;

/// Runs that differ in their seed alone, under the name that the page gives them, with the colour that they have all over it.
struct Named<'a> {
    /// The first of them, which stands for all where they are alike.
    run: &'a Run,
    runs: Vec<&'a Run>,
    name: String,
    colour: usize,
}

impl Named<'_> {
    /// What its runs have of a figure.
    fn spread(&self, value: impl Fn(&Run) -> Option<f64>) -> Option<Spread> {
        Spread::of(&self.runs.iter().filter_map(|run| value(run)).collect::<Vec<_>>())
    }

    fn mean(&self, value: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
        self.spread(value).map(|s| s.mean)
    }

    /// Its runs, each under a name of its own.
    fn each(&self) -> Vec<(&Run, &str)> {
        match &self.runs[..] {
            [only] => vec![(only, &self.name)],
            several => several.iter().map(|run| (*run, run.name.as_str())).collect(),
        }
    }
}

/// The page about runs as HTML.
pub(crate) fn render(title: &str, runs: &[Run]) -> String {
    let runs = &named(runs);
    let mut body = overview::lead(runs);
    body += &notes("", runs, |run| run.notes.clone());
    body += &scatter::section(runs);
    body += &overview::figures(runs);
    body += &curves(runs);
    body += &classes::section(runs);
    body += &ratios::section(runs);
    body += &memory::section(runs);
    body += &policy::section(runs);
    body += &notes("<h2>Warnings</h2>", runs, warnings);
    body += &recipes(runs);
    page(title, &(body + &footer(runs)))
}

fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{}</style></head><body><main>\n<h1>{title}</h1>\n{body}</main></body></html>\n",
        include_str!("style.css")
    )
}

/// Refuses to write a page over what the runs in these folders consist of.
///
/// # Errors
/// One that names the file.
pub(crate) fn check_out(out: &Path, runs: &[PathBuf]) -> Result<()> {
    let parts = ["recipe.toml", "metrics.jsonl", "summary.json", "model", "checkpoints"];
    let read: Vec<_> = runs.iter().flat_map(|run| parts.map(|part| run.join(part))).collect();
    apart::check_file(out, read.iter().map(PathBuf::as_path))
}

/// Writes the page about runs to `out`, which holds either what it held before or the whole page.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write(title: &str, runs: &[Run], out: &Path) -> Result<()> {
    write_page(&render(title, runs), out)
}

/// Writes the page about what `colrow inspect` found, as [`write()`] does.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write_evidence(evidence: &Evidence, out: &Path) -> Result<()> {
    write_page(&page("colrow: the evidence", &(evidence::body(evidence) + &footer(&[]))), out)
}

/// Writes the page about what `colrow estimate` found, as [`write()`] does.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write_estimates(report: &crate::estimates::Report, out: &Path) -> Result<()> {
    write_page(&page("colrow: estimates of a product", &(estimates::body(report) + &footer(&[]))), out)
}

fn write_page(html: &str, out: &Path) -> Result<()> {
    output::check_page(Some(out))?;
    write_atomic(out, html)
}

/// The runs by recipe; recipes of one name are told apart by a number.
fn named(runs: &[Run]) -> Vec<Named<'_>> {
    let groups = groups(runs);
    let name = |i: usize| {
        let same = groups[..i].iter().filter(|g| g.name == groups[i].name).count();
        if same == 0 { groups[i].name.clone() } else { format!("{} ({})", groups[i].name, same + 1) }
    };
    let names: Vec<String> = (0..groups.len()).map(name).collect();
    let all = groups.into_iter().zip(names).enumerate();
    all.map(|(colour, (group, name))| Named { run: group.runs[0], runs: group.runs, name, colour }).collect()
}

fn curves(runs: &[Named]) -> String {
    if runs.is_empty() {
        return String::new();
    }
    let mut html = String::from("<h2>Curves</h2>\n");
    if runs.len() > 1 {
        let entries = runs.iter().map(|n| (svg::swatch(n.colour), n.name.clone()));
        html += &legend(entries);
    }
    html += "<div class=\"charts\">";
    let logged = runs.iter().map(|n| n.run.train.len()).max().unwrap_or(0);
    let window = if logged < 24 { 1 } else { (logged / 12).clamp(3, 200) };
    let seeds = runs.iter().any(|n| n.runs.len() > 1);
    let of_seeds = if seeds { "mean over seeds; faint: each" } else { "" };
    let how = match (window > 1, seeds) {
        (true, true) => format!("(averaged over about {window} logged values and over seeds; faint: each seed)"),
        (true, false) => format!("(averaged over about {window} logged values; faint: each)"),
        (false, true) => format!("({of_seeds})"),
        (false, false) => String::new(),
    };
    html += &figure("Training loss", &how, &svg::line_chart("loss", &train_series(runs, |p| p.loss, window)));
    for metric in eval_metrics(runs) {
        let curve = |run: &Run| run.eval_series(&metric).into_iter().map(|(step, v)| (step as f64, v)).collect();
        let series = runs.iter().map(|n| {
            let mut raw: Vec<Points> = n.runs.iter().map(|run| curve(run)).collect();
            let points = if raw.len() > 1 { svg::mean(&raw) } else { raw.remove(0) };
            Series { name: n.name.clone(), colour: n.colour, points, raw, marked: true }
        });
        let title = format!("Evaluation {metric}");
        let how = if seeds { format!("({of_seeds})") } else { String::new() };
        html += &figure(&title, &how, &svg::line_chart(&metric, &series.collect::<Vec<_>>()));
    }
    html += "</div>";
    let more: [(&str, &str, Field, usize); 3] = [
        ("Learning rate", "learning rate", |p| p.lr, 1),
        ("Norm of the gradient", "norm", |p| p.grad_norm, window),
        ("Time per step", "seconds", |p| p.step_seconds, window),
    ];
    let logged =
        |value: Field| runs.iter().flat_map(|n| &n.runs).any(|run| run.train.iter().any(|p| value(p).is_some()));
    let more = more.iter().filter(|m| logged(m.2));
    let charts: String = more.map(|m| figure(m.0, "", &svg::line_chart(m.1, &train_series(runs, m.2, m.3)))).collect();
    if !charts.is_empty() {
        let _ = write!(
            html,
            "<details><summary>Learning rate, gradient norm, time per step</summary><div class=\"charts\">{charts}</div></details>"
        );
    }
    html
}

fn train_series(runs: &[Named], value: Field, window: usize) -> Vec<Series> {
    let curve = |run: &Run| -> Points { run.train.iter().map(|p| (p.step as f64, value(p))).collect() };
    let series = runs.iter().map(|n| {
        let mut raw: Vec<Points> = n.runs.iter().map(|run| curve(run)).collect();
        let mean = if raw.len() > 1 { svg::mean(&raw) } else { raw[0].clone() };
        if raw.len() > 1 {
            raw.iter_mut().for_each(|curve| *curve = svg::smooth(curve, window));
        } else if window == 1 {
            raw.clear();
        }
        let points = if window > 1 { svg::smooth(&mean, window) } else { mean };
        Series { name: n.name.clone(), colour: n.colour, points, raw, marked: false }
    });
    series.collect()
}

/// Every metric that any run evaluated, those that choose checkpoints first, the loss last.
fn eval_metrics(runs: &[Named]) -> Vec<String> {
    let mut metrics: Vec<String> = Vec::new();
    let chosen = runs.iter().filter_map(|n| n.run.metric());
    let each = || runs.iter().flat_map(|n| &n.runs);
    let all = each().flat_map(|run| &run.evals).flat_map(|e| e.metrics.keys().cloned());
    // what it was counted over says nothing of how it went
    let drawn = |metric: &String| !["loss", "labels", "tokens"].contains(&metric.as_str());
    for metric in chosen.chain(all).filter(drawn).chain(["loss".to_string()]) {
        let logged = || each().any(|run| run.eval_series(&metric).iter().any(|p| p.1.is_some()));
        if !metrics.contains(&metric) && logged() {
            metrics.push(metric);
        }
    }
    metrics
}

fn warnings(run: &Run) -> Vec<String> {
    let mut warnings = run.list(|s: &Summary| &s.warnings).to_vec();
    if let Some(n) = run.of(|s| s.truncated_examples).filter(|n| *n > 0) {
        let (examples, were) = if n == 1 { ("example", "was") } else { ("examples", "were") };
        warnings.push(format!("{} {examples} longer than the maximum length {were} cut.", units::count(n)));
    }
    warnings
}

/// A box of remarks, each with the runs it is about; empty if there are none.
fn notes(heading: &str, runs: &[Named], of: impl Fn(&Run) -> Vec<String>) -> String {
    let mut lines: Vec<(String, Vec<&str>)> = Vec::new();
    let all: Vec<(&Run, &str)> = runs.iter().flat_map(Named::each).collect();
    for (run, name) in &all {
        for note in of(run) {
            match lines.iter_mut().find(|l| l.0 == note) {
                Some(line) => line.1.push(name),
                None => lines.push((note, vec![name])),
            }
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    let mut html = format!("{heading}<div class=\"notes\"><ul>");
    for (note, names) in lines {
        let about = match names.len() {
            _ if all.len() == 1 => String::new(),
            n if n >= all.len() => "<b>all runs</b>: ".into(),
            _ => format!("<b>{}</b>: ", escape(&names.join(", "))),
        };
        let _ = write!(html, "<li>{about}{}</li>", escape(&note));
    }
    html + "</ul></div>"
}

fn recipes(runs: &[Named]) -> String {
    let mut html = String::new();
    for named in runs {
        if let Some(recipe) = &named.run.recipe {
            let open = if runs.len() == 1 { " open" } else { "" };
            let name = escape(&match named.runs.len() {
                1 => named.name.clone(),
                n => format!("{}, the first of {n} seeds", named.name),
            });
            let _ = write!(
                html,
                "<details{open}><summary>{name}: recipe.toml</summary><pre>{}</pre></details>",
                escape(recipe)
            );
        }
    }
    if html.is_empty() { html } else { format!("<h2>Recipe</h2>\n<p>As resolved, every default filled in.</p>{html}") }
}

fn footer(runs: &[Named]) -> String {
    let mut html = format!(
        "<footer><p>Written by colrow {} on {}.</p>",
        env!("CARGO_PKG_VERSION"),
        units::date(SystemTime::now())
    );
    for (run, name) in runs.iter().flat_map(Named::each) {
        let version = run.of(|s| s.version.clone()).map_or(String::new(), |v| format!(", colrow {v}"));
        let threads = run.of(|s| s.threads);
        let threads = threads.map_or(String::new(), |n| format!(", {n} {}", if n == 1 { "thread" } else { "threads" }));
        let words = format!("{name}: {}{version}{threads}", run.dir.display());
        let _ = write!(html, "<div>{}</div>", escape(&words));
    }
    html + "</footer>"
}

fn figure(title: &str, how: &str, chart: &str) -> String {
    let how = if how.is_empty() { String::new() } else { format!(" <small class=\"soft\">{}</small>", escape(how)) };
    format!("<figure><figcaption>{}{how}</figcaption>{chart}</figure>", escape(title))
}

/// A legend from signs (HTML) and names (text).
fn legend(entries: impl Iterator<Item = (String, String)>) -> String {
    let items: String = entries.map(|(sign, name)| format!("<li>{sign}<span>{}</span></li>", escape(&name))).collect();
    format!("<ul class=\"legend\">{items}</ul>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn load(dir: &Path, names: &[&str]) -> Vec<Run> {
        names.iter().map(|n| Run::load(&dir.join(n)).unwrap()).collect()
    }

    /// Tags that are opened and not closed, or closed and not open; `None` if all is well.
    fn unbalanced(html: &str) -> Option<String> {
        let body = html.split_once("<body>")?.1;
        let mut open: Vec<&str> = vec!["html", "body"];
        for tag in body.split('<').skip(1) {
            let inside = tag.split('>').next()?;
            if let Some(name) = inside.strip_prefix('/') {
                if open.pop() != Some(name) {
                    return Some(format!("</{name}> closes what is not open"));
                }
            } else if !inside.ends_with('/') {
                open.push(inside.split([' ', '\n']).next()?);
            }
        }
        (!open.is_empty()).then(|| format!("{open:?} are not closed"))
    }

    /// `COLROW_REPORT_SAMPLES=FOLDER` keeps the pages of this test for a look at them.
    #[test]
    fn sample_runs_show_everything() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = std::env::var_os("COLROW_REPORT_SAMPLES").map_or(temporary.path().to_path_buf(), Into::into);
        let names = ["exact", "wta@0.3", "pps@0.3"];
        for (i, name) in names.iter().enumerate() {
            super::sample::write_run(&dir.join(name), name, i as u64, [1.0, 0.46, 0.46][i]);
        }
        let runs = load(&dir, &names);
        write("Movie reviews, three ways", &runs, &dir.join("three.html")).unwrap();
        write("Movie reviews", &runs[..1], &dir.join("one.html")).unwrap();
        super::sample::write_run(&dir.join("pps@auto"), "pps@auto", 3, 0.38);
        write("Ratios that the run chose", &load(&dir, &["pps@auto"]), &dir.join("auto.html")).unwrap();
        fs::remove_file(dir.join("pps@0.3/summary.json")).unwrap();
        write("An interrupted run", &load(&dir, &["pps@0.3"]), &dir.join("interrupted.html")).unwrap();

        let three = fs::read_to_string(dir.join("three.html")).unwrap();
        assert_eq!(unbalanced(&three), None);
        for expected in [
            "<title>Movie reviews, three ways</title>",
            "Training loss",
            "Evaluation accuracy",
            "Kept bytes by layer and op",
            "Live bytes over a step",
            "layer 5, linear:",
            "forward encoder.layer.0.attention.qkv",
            "optimizer",
            "peak ",
            "encoder.layer.0–5.ffn.up",
            "×0.",
            "13 examples longer than the maximum length were cut.",
            "estimator = &quot;wta&quot;",
            "pps@0.3",
        ] {
            assert!(three.contains(expected), "{expected}");
        }
        for external in ["http:", "https:", "<script", "<link", "@import", "url(", "src="] {
            assert!(!three.contains(external), "{external}");
        }
        assert!(!three.contains("NaN") && !three.contains(">inf"));

        let one = fs::read_to_string(dir.join("one.html")).unwrap();
        assert_eq!(unbalanced(&one), None);
        assert!(one.contains("class=\"tiles\"") && one.contains("<details open>"));

        let auto = fs::read_to_string(dir.join("auto.html")).unwrap();
        assert_eq!(unbalanced(&auto), None);
        assert!(auto.contains("<h2>Ratios</h2>") && auto.contains("<span>encoder.layer.*.ffn.up</span>"));
        assert!(!one.contains("<h2>Ratios</h2>"));

        let interrupted = fs::read_to_string(dir.join("interrupted.html")).unwrap();
        assert_eq!(unbalanced(&interrupted), None);
        assert!(interrupted.contains("no summary.json") && interrupted.contains("Training loss"));
        assert!(!interrupted.contains("<h2>Memory</h2>"));
    }

    /// The classes (colours) of the swatches or boxes before a name in all legends of a page.
    fn colours_of<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
        let entries = html.split("<li>").skip(1).filter_map(|entry| entry.split_once(&format!("<span>{name}</span>")));
        let class = |entry: &'a str| entry.split_once("class=\"")?.1.split_once('"').map(|c| c.0);
        entries.filter_map(|(sign, _)| class(sign)).collect()
    }

    #[test]
    fn an_op_and_a_run_have_one_colour_each() {
        let dir = tempfile::tempdir().unwrap();
        let load = |name: &str, seed: u64, rows: f64| {
            super::sample::write_run(&dir.path().join(name), name, seed, rows);
            Run { recipe: Some(format!("seed = {seed}\nratio = {rows}")), ..Run::load(&dir.path().join(name)).unwrap() }
        };
        let runs = [load("exact-0", 0, 1.0), load("lean", 1, 0.01), load("exact-1", 1, 1.0)];
        let html = render("all", &runs);
        assert_eq!(unbalanced(&html), None);
        // the scatter plots and the curves; two seeds are one
        assert_eq!(colours_of(&html, "exact"), ["swatch s0", "swatch s0"]);
        assert_eq!(colours_of(&html, "lean"), ["swatch s1", "swatch s1"]);
        assert!(html.contains("3 runs on movie reviews of 2 recipes") && html.contains("exact, its first seed"));
        // attention keeps most of the second run, linears of the first
        let alone = render("lean", &runs[1..2]);
        for (op, colour) in
            [("linear", "box s0"), ("attention", "box s1"), ("layer_norm", "box s2"), ("gelu", "box s3")]
        {
            assert_eq!(colours_of(&html, op), [colour; 2], "{op}");
            assert_eq!(colours_of(&alone, op), [colour], "{op}");
        }
        // kept, but too little to be seen
        assert!(!html.contains("<span>embedding</span>") && html.contains("<th>embedding</th>"));
    }

    #[test]
    fn what_sets_the_peak_and_equal_policies_are_told() {
        let dir = tempfile::tempdir().unwrap();
        super::sample::write_run(dir.path(), "exact", 0, 1.0);
        let html = render("one", &[Run::load(dir.path()).unwrap()]);
        assert!(html.contains("backward <b>encoder.layer.5.ffn.down</b>. Live then: optimizer 173 MiB"), "{html}");
        assert!(html.contains("kept, at the peak"));
        assert!(html.contains("All 52 sites alike: exact.") && !html.contains("<td class=\"text\">exact</td></tr>"));
    }

    #[test]
    fn classes_and_what_they_were_taken_for() {
        let dir = tempfile::tempdir().unwrap();
        let class = |name: &str, support: u64| serde_json::json!({"name": name, "precision": 0.5, "recall": 0.25, "f1": 1.0 / 3.0, "support": support});
        let summary = serde_json::json!({
            "classes": [class("<b>", 4), class("good", 6)], "positive": "good", "macro_f1": 0.125, "confusion": [[1, 3, 0], [2, 2, 2]],
        });
        fs::write(dir.path().join("summary.json"), summary.to_string()).unwrap();
        let html = render("one", &[Run::load(dir.path()).unwrap()]);
        assert_eq!(unbalanced(&html), None);
        for expected in [
            "<th class=\"fold\">&lt;b&gt;",
            "0.333",
            "0.125",
            "F1 is of this class",
            "title=\"75.0 % of &lt;b&gt;\">3<",
            "no label",
        ] {
            assert!(html.contains(expected), "{expected}");
        }
    }

    #[test]
    fn foreign_text_is_escaped_everywhere() {
        let bad = "<script>alert(1)</script>";
        let dir = tempfile::tempdir().unwrap();
        let summary = serde_json::json!({
            "name": bad, "task": bad, "metric": bad, "best": {"step": 1, "value": 0.5}, "final": {bad: 0.5}, "warnings": [bad],
            "version": bad, "kept_bytes": 10, "peak_bytes_by_class": {bad: 5}, "policy": [{"site": bad, "keep": bad}, {"site": bad, "keep": {bad: bad}}],
            "ledger": [{"site": bad, "op": bad, "what": bad, "keep": bad, "bytes": 7}],
            "timeline": [{"phase": bad, "at": bad, "live": {bad: 5}}],
        });
        fs::write(dir.path().join("summary.json"), summary.to_string()).unwrap();
        let eval = serde_json::json!({"kind": "eval", "step": 1, "metrics": {bad: 0.5}});
        fs::write(dir.path().join("metrics.jsonl"), format!("{eval}\n")).unwrap();
        fs::write(dir.path().join("recipe.toml"), format!("# {bad}\n")).unwrap();
        let load = || Run::load(dir.path()).unwrap();
        for runs in [vec![load()], vec![load(), load()]] {
            let html = render(bad, &runs);
            assert!(!html.contains("<script"));
            assert!(html.matches("&lt;script&gt;").count() > 15);
            assert_eq!(unbalanced(&html), None);
        }
    }

    #[test]
    fn empty_runs_and_values_that_are_not_finite_do_not_break_the_page() {
        let dir = tempfile::tempdir().unwrap();
        for (name, metrics, summary) in [
            ("nothing", "", "{}"),
            (
                "nulls",
                "{\"kind\":\"train\",\"step\":1,\"loss\":null}\n{\"kind\":\"eval\",\"step\":1,\"loss\":null,\"metrics\":{\"f1\":null}}\n",
                "{\"best\":{\"step\":1,\"value\":null},\"final\":{\"loss\":null},\"step_seconds_median\":null,\"kept_bytes\":0}",
            ),
            (
                "nan",
                "{\"kind\":\"train\",\"step\":1,\"loss\":NaN}\n{\"kind\":\"train\",\"step\":2,\"loss\":0.5}\n",
                "{\"timeline\":[],\"ledger\":[]}",
            ),
            (
                "zeros",
                "{\"kind\":\"train\",\"step\":0,\"loss\":0.0,\"step_seconds\":0.0}\n",
                "{\"ledger\":[{\"site\":\"a\",\"op\":\"b\",\"bytes\":0}],\"timeline\":[{\"phase\":\"forward\",\"live\":{}}],\"kept_bytes\":0,\"peak_bytes\":0}",
            ),
        ] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("metrics.jsonl"), metrics).unwrap();
            fs::write(dir.path().join(name).join("summary.json"), summary).unwrap();
            let html = render(name, &load(dir.path(), &[name]));
            assert_eq!(unbalanced(&html), None, "{name}");
            assert!(!html.contains("NaN") && !html.contains("inf,"), "{name}");
        }
        let runs = load(dir.path(), &["nothing", "nulls", "nan", "zeros", "zeros"]);
        let html = render("all", &runs);
        assert_eq!(unbalanced(&html), None);
        assert!(html.contains("zeros (2)") && !html.contains("NaN"));
        assert_eq!(unbalanced(&render("none", &[])), None);
    }

    #[test]
    fn a_page_is_written_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("report.html");
        fs::write(&out, "<!doctype html>before").unwrap();
        write("a", &[], &out).unwrap();
        assert!(fs::read_to_string(&out).unwrap().ends_with("</html>\n"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        fs::create_dir(dir.path().join("taken")).unwrap();
        fs::write(dir.path().join("taken/file"), "").unwrap();
        let error = write("a", &[], &dir.path().join("taken")).unwrap_err().to_string();
        assert!(error.starts_with("expected a file to write, found a folder") && error.contains("taken"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert!(write("a", &[], &dir.path().join("none/report.html")).is_err());
        assert!(write("a", &[], Path::new("/")).is_err());
    }
}
