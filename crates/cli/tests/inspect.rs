//! `colrow inspect`: what sampling would cost.

mod common;

use common::{Place, rows, tsv};
use serde_json::json;

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
    for needle in
        ["Where the mass is", "./model", "train.tsv (classify)", "exact, pps@0.3, cached norms", "Σp over C", "</html>"]
    {
        assert!(page.contains(needle), "{needle}");
    }
    assert_eq!((&json["about"]["model"], &json["about"]["ratio"]), (&json!("./model"), &json!(0.3)));
    for at in json["mean"]["ratios"].as_array().unwrap() {
        let certain = at["certain"].as_array().unwrap();
        let masses: Vec<f64> = certain.iter().map(|c| c["mass"].as_f64().unwrap()).collect();
        assert!(masses.is_sorted() && masses[0] == 0.0 && *masses.last().unwrap() <= 1.0 + 1e-12, "{at}");
        // the largest of n rows are at least their share of n, here of k: the whole of k has at least ratio
        assert!(*masses.last().unwrap() >= at["ratio"].as_f64().unwrap() * 0.9, "{at}");
    }
    assert!((json["mean"]["mass"][7]["share"].as_f64().unwrap() - 1.0).abs() < 1e-12);
    let table = place.ok(&args);
    assert_eq!(table.lines().count(), 3 + 11 + 1);
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

/// What is exported is what was measured: the errors of one batch are those that `estimate` finds.
#[test]
fn exported_operands_are_read_by_estimate() {
    let place = Place::new();
    let site = "encoder.layer.0.output.dense";
    let args = ["inspect", "recipe.toml", "--steps", "1", "--draws", "400", "--export", site, "--json"];
    let json = place.ok_json(&args);
    let inspected = json["sites"].as_array().unwrap().iter().find(|s| s["name"] == site).unwrap();
    let at = &inspected["ratios"][1];
    let [x, dz] = ["x", "dz"].map(|what| format!("{site}.{what}.npy"));
    let args = ["estimate", "--x", &x, "--dz", &dz, "--ratio", "0.3", "--trials", "400"];
    let estimated = place.ok_json(&[&args[..], &["--json", "--out", "page.html"]].concat());
    assert_eq!(estimated["rows"].as_f64(), inspected["rows"].as_f64());
    for name in ["crs", "wta", "pps"] {
        let one =
            at["estimators"].as_array().unwrap().iter().find(|e| e["estimator"] == name && e["norms"] == "current");
        let other = estimated["estimators"].as_array().unwrap().iter().find(|e| e["estimator"] == name);
        let share = one.unwrap()["rmse"].as_f64().unwrap() / other.unwrap()["rmse"].as_f64().unwrap();
        // each of 400 squared errors, whose relative deviation is about 1: 5 % either way, 4 deviations
        assert!((0.8..1.25).contains(&share), "{name}: {share}");
    }
    assert!(place.text("page.html").contains("Error of one draw"));
    assert!(place.ok(&args).contains("rmse   √(mean ‖Ĝ − G‖²)/‖G‖"));
    let ran = place.run(&["inspect", "recipe.toml", "--steps", "1", "--export", "encoder.layer.9"]);
    assert!(
        ran.code == Some(2) && ran.err.contains("found `encoder.layer.9`") && ran.err.contains(site),
        "{}",
        ran.err
    );
}

#[test]
fn what_cannot_be_inspected() {
    let place = Place::new();
    let fails = |args: &[&str], needles: &[&str]| {
        let ran = place.run(&[&["inspect", "recipe.toml"], args].concat());
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        needles.iter().for_each(|needle| assert!(ran.err.contains(needle), "{needle:?} is not in {}", ran.err));
    };
    fails(&["--steps", "0"], &["expected a whole number from 1 to 1000000"]);
    let sets = ["--set", "train.method=bitfit", "--set", "train.modules_to_save=[]"];
    fails(&sets, &["trains no linear's weight", "hint: inspect full fine-tuning"]);
}

#[test]
fn what_an_inspection_leaves_out_is_said() {
    let place = Place::new();
    let inspect = |sets: &[&str]| {
        let args = ["inspect", "recipe.toml", "--steps", "1", "--draws", "1"].into_iter();
        let ran = place.run(&args.chain(sets.iter().flat_map(|set| ["--set", set])).collect::<Vec<_>>());
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        ran
    };
    let full = inspect(&[]);
    assert!(full.out.contains(": one batch of ") && !full.err.contains("looked at"), "{}{}", full.out, full.err);
    let lora = inspect(&["train.method=lora"]);
    let sites = lora.out.lines().skip(3).count();
    assert_eq!(sites, 2, "the classifier and the mean: {}", lora.out);
    assert!(
        lora.err.contains("by train.method = lora only linears whose whole weight is trained are looked at"),
        "{}",
        lora.err
    );
}
