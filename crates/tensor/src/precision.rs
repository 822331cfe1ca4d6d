//! What matrix products round.

crate::named! {
    /// What a device's matrix products do with f32 operands; f64 stays f64.
    #[derive(Default)]
    Precision {
        /// Multiply them as they are.
        #[default]
        F32 = "f32",
        /// Round them to bf16 (8 bits of precision, f32's range) and sum the products in f32. Operands and results remain f32 in
        /// memory. Twice as fast on processors with AVX512-BF16; elsewhere the same up to the order of sums, and slower than f32.
        Bf16 = "bf16",
    }
}
