//! The examples do what they say.

mod common;
#[path = "../examples/custom_op.rs"]
mod custom_op;
#[path = "../examples/own_model.rs"]
#[expect(dead_code, reason = "its main prints what is checked here")]
mod own_model;
#[path = "../examples/predict.rs"]
#[expect(dead_code, reason = "its main reads the arguments of a program")]
mod predict;

use colrow_autograd::Policy;
use common::Place;
use serde_json::Value;

#[test]
fn a_model_predicts_as_the_program_does() {
    let place = Place::new();
    let texts = ["a fine film .", "the plot was very very poor and bad"].map(str::to_owned);
    place.write("texts.txt", texts.join("\n"));
    place.train(&["train.method=lora", "train.steps=2", "output=lora", "task=sst2"]);
    for model in ["model", "lora/model"] {
        let lines = place.ok(&["predict", "--model", model, "--data", "texts.txt"]);
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let predictions = predict::predict(&place.path(model), &texts).unwrap();
        assert_eq!((lines.len(), predictions.len()), (2, 2));
        for (line, prediction) in lines.iter().zip(predictions) {
            assert_eq!(line["label"], prediction.label);
            assert_eq!(serde_json::from_value::<Vec<f32>>(line["logits"].clone()).unwrap(), prediction.logits);
        }
    }
}

#[test]
fn a_model_of_one_s_own_learns_from_a_fifth_of_what_it_keeps() {
    let (exact, all) = own_model::train(Policy::exact()).unwrap();
    let (lean, some) = own_model::train(own_model::lean()).unwrap();
    // without learning the loss is ln 4 = 1.39
    assert!(exact < 0.3 && lean < 0.35, "{exact} {lean}");
    assert!(5 * some < all, "{some} {all}");
}

#[test]
fn an_op_of_one_s_own_has_the_right_gradient() {
    custom_op::main().unwrap();
}
