//! Labels as the loss takes them: class indices or numbers. What they are called in files is the label map's.

/// The labels of a set of examples, in its order.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// Class indices.
    Class(Vec<u32>),
    /// Numbers to regress to; finite.
    Value(Vec<f32>),
}

impl Labels {
    /// Number of examples.
    pub fn len(&self) -> usize {
        match self {
            Labels::Class(v) => v.len(),
            Labels::Value(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The labels of the examples `indices`.
    pub fn select(&self, indices: &[u32]) -> Labels {
        match self {
            Labels::Class(v) => Labels::Class(indices.iter().map(|&i| v[i as usize]).collect()),
            Labels::Value(v) => Labels::Value(indices.iter().map(|&i| v[i as usize]).collect()),
        }
    }
}
