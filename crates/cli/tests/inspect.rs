//! `colrow inspect`: what sampling would cost.

mod common;

use common::{Place, rows, tsv};

#[test]
fn every_linear_is_looked_at() {
    let place = Place::new();
    place.write("train.tsv", tsv(&rows(64, 1, None)));
    let args = ["inspect", "recipe.toml", "--steps", "4", "--draws", "4"];
    let json = place.ok_json(&[&args[..], &["--json", "--out", "page.html"]].concat());
    let sites = json["sites"].as_array().unwrap();
    let names: Vec<_> = sites.iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!((names.len(), names[0], names[10]), (11, "encoder.layer.0.attention.self.qkv", "classifier"));
    assert_eq!(json["steps"], 4);
    for site in sites {
        let shares: Vec<f64> = site["mass"].as_array().unwrap().iter().map(|m| m["share"].as_f64().unwrap()).collect();
        assert!(shares.is_sorted() && shares.iter().all(|s| (0.0..=1.0).contains(s)), "{site}");
        assert!(shares[5] >= 0.5, "the larger half has at least half of the mass: {site}");
    }
    let mean = |estimator: &str, norms: &str, ratio: usize| {
        let all = json["mean"]["ratios"][ratio]["estimators"].as_array().unwrap();
        all.iter().find(|e| e["estimator"] == estimator && e["norms"] == norms).unwrap()["rmse"].as_f64().unwrap()
    };
    for norms in ["current", "cached", "running", "uniform"] {
        assert!(mean("pps", norms, 1) < mean("crs", norms, 1), "{norms}");
        assert!(mean("pps", norms, 2) < mean("pps", norms, 0), "{norms}");
    }
    assert!(mean("pps", "current", 1) < mean("pps", "uniform", 1));
    let page = place.text("page.html");
    assert!(page.contains("Where the mass is") && page.contains("</html>"));
    let table = place.ok(&args);
    assert_eq!(table.lines().count(), 2 + 11 + 1);
    assert!(table.lines().last().unwrap().starts_with("mean"));
}

/// What a recipe keeps in full is exact; codes of eight bits cost a few per cent, rows beside them about what drawn rows cost alone.
#[test]
fn the_recipes_own_error() {
    let place = Place::new();
    place.write("train.tsv", tsv(&rows(64, 1, None)));
    let inspect = |sets: &[&str]| {
        let args = ["inspect", "recipe.toml", "--steps", "4", "--draws", "4", "--json"];
        place.ok_json(&args.into_iter().chain(sets.iter().flat_map(|set| ["--set", set])).collect::<Vec<_>>())
    };
    let recipe = |json: &serde_json::Value| json["mean"]["recipe"]["rmse"].as_f64().unwrap();
    let exact = inspect(&["keep.policy=exact"]);
    assert!(exact["sites"].as_array().unwrap().iter().all(|site| site["recipe"]["rmse"] == 0.0));
    let codes = inspect(&["keep.policy=lean", "keep.ratio=1.0"]);
    assert!((1e-4..0.05).contains(&recipe(&codes)), "{}", codes["mean"]["recipe"]);
    let rows = inspect(&["keep.policy=lean", "keep.ratio=0.3"]);
    // not the mean: linears of one row a sequence are exact under `lean`
    let first = &rows["sites"][0];
    let alone = first["ratios"][1]["estimators"].as_array().unwrap();
    let alone = alone.iter().find(|e| e["estimator"] == "pps" && e["norms"] == "current").unwrap();
    let share = first["recipe"]["rmse"].as_f64().unwrap() / alone["rmse"].as_f64().unwrap();
    assert!((0.5..1.5).contains(&share), "{share} of {alone}");
}

#[test]
fn what_cannot_be_inspected() {
    let place = Place::new();
    let fails = |args: &[&str], needles: &[&str]| {
        let ran = place.run(&[&["inspect", "recipe.toml"], args].concat());
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        needles.iter().for_each(|needle| assert!(ran.err.contains(needle), "{needle:?} is not in {}", ran.err));
    };
    fails(&["--steps", "0"], &["expected at least 1, found 0"]);
    let sets = ["--set", "train.method=bitfit", "--set", "train.modules_to_save=[]"];
    fails(&sets, &["trains no linear's weight", "hint: inspect full fine-tuning"]);
}
