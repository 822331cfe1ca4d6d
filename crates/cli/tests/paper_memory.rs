//! `colrow paper-memory`: the publication's memory table, planned.

mod common;

use common::Place;
use serde_json::Value;

#[test]
fn the_papers_table_is_planned_beside_the_published_figures() {
    let place = Place::new();
    let json = place.ok_json(&["paper-memory", "--json"]);
    let models = json["models"].as_array().unwrap();
    let names: Vec<_> = models.iter().map(|m| m["model"].as_str().unwrap()).collect();
    assert_eq!(names, ["T5-base", "T5-large", "T5-3B", "BERT-base", "BERT-large"]);
    let row = |model: usize, method: &str| -> &Value {
        models[model]["methods"].as_array().unwrap().iter().find(|m| m["method"] == method).unwrap()
    };
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"));
    // 12 layers of 48.57·d bytes a token, the decoder's keys and values of the source (2·d floats a layer), and a few rows of targets
    let encoder = 12_800.0 * 12.0 * 768.0 * (48.57 + 8.0);
    let kept = number(row(0, "full"), "kept_bytes");
    assert!((kept / encoder - 1.0).abs() < 0.05, "{kept} is far from {encoder}");
    // 222.9 million parameters in floats, twice that of moments
    let classes = &row(0, "full")["peak_bytes_by_class"];
    let weights = number(classes, "weights");
    assert!((weights / (4.0 * 222.9e6) - 1.0).abs() < 1e-3, "{weights}");
    assert_eq!(number(classes, "optimizer"), 2.0 * weights);
    assert!((number(row(0, "wta@0.3"), "less_than_full") - 1.26).abs() < 0.02, "{}", row(0, "wta@0.3"));
    assert!((number(row(0, "wta@0.3"), "published_less_than_full") - 2.09).abs() < 0.01);
    for model in 0..models.len() {
        let peak = |method: &str| number(row(model, method), "peak_bytes");
        for (more, less) in [
            ("full", "LoRA"),
            ("full", "wta@0.3"),
            ("wta@0.3", "wta@0.1"),
            ("LoRA", "LoRA wta@0.3"),
            ("LoRA wta@0.3", "LoRA wta@0.1"),
            ("wta@0.1", "lean@0.3"),
            ("LoRA wta@0.1", "LoRA lean@0.3"),
        ] {
            assert!(peak(more) > peak(less), "{}: {more} needs no more than {less}", names[model]);
        }
        let published = model < 2;
        assert_eq!(models[model]["published"], published);
        assert_eq!(row(model, "full")["published_gb"].is_number(), published);
        assert!(row(model, "lean@0.3")["published_gb"].is_null(), "the paper has no lean");
    }
    let text = place.ok(&["paper-memory"]);
    for needle in ["Liu et al. 2023", "17.66", "no figures of T5-3B", "full is leaner here", "1.26", "2.09"] {
        assert!(text.contains(needle), "{needle:?} is not in {text}");
    }
    assert!(text.lines().take_while(|line| !line.starts_with("Why")).all(|line| line.chars().count() <= 120), "{text}");
}
