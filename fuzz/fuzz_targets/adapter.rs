#![no_main]
use colrow_models::checkpoint::adapter::{AdapterConfig, config_from_json};
use colrow_models::lora::names_module;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(AdapterConfig { lora: config, selection, .. }) = config_from_json(bytes) else { return };
    let module = "encoder.block.0.layer.0.SelfAttention.q";
    selection.selects(module);
    assert!(config.rank_of(module) >= 1 && config.scale_of(module).is_finite(), "{config:?}");
    assert!((0.0..1.0).contains(&config.dropout), "{config:?}");
    for pattern in config.targets.iter().chain(&config.modules_to_save) {
        names_module(pattern, module);
    }
});
