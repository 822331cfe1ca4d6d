//! Parameters: the tensors that a model learns, in one list.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use colrow_tensor::{Class, DType, Device, Weight};

/// Names a parameter of a [`Params`] list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub(crate) usize);

impl ParamId {
    /// Its place in the list, from 0.
    pub fn index(self) -> usize {
        self.0
    }
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name in the model, for messages.
    pub name: String,
    /// Its numbers.
    pub value: Weight,
    /// Whether it is read as the weight of a linear or as a table, and so may be in codes.
    pub matrix: bool,
    /// Whether it is learned; a frozen parameter gets no gradient and keeps nothing for one.
    pub trainable: bool,
    /// Whether weight decay applies: not to biases and norms.
    pub decay: bool,
    /// Handles that there are.
    uses: Arc<AtomicUsize>,
}

impl Param {
    /// Whether an op holds the parameter, and may read its value or add to its gradient.
    pub fn in_use(&self) -> bool {
        self.uses.load(Ordering::Relaxed) > 0
    }
}

/// A parameter as an op holds it, between its forward and its backward pass: while one does, the value does not change and the gradient is not
/// final.
#[derive(Debug)]
pub struct Handle {
    /// Its name in the list.
    pub id: ParamId,
    /// Its numbers.
    pub value: Weight,
    /// Whether it is learned.
    pub trainable: bool,
    uses: Arc<AtomicUsize>,
}

impl Handle {
    pub(crate) fn new(id: ParamId, param: &Param) -> Self {
        param.uses.fetch_add(1, Ordering::Relaxed);
        Self { id, value: param.value.clone(), trainable: param.trainable, uses: param.uses.clone() }
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        self.uses.fetch_add(1, Ordering::Relaxed);
        Self { id: self.id, value: self.value.clone(), trainable: self.trainable, uses: self.uses.clone() }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.uses.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All parameters of a model, on one device and of one float type.
#[derive(Debug)]
pub struct Params {
    device: Device,
    dtype: DType,
    list: Vec<Param>,
    /// Of those in the list, by ascending names, where it is a part of another; else they are numbered as they stand.
    of_another: Option<Vec<Handle>>,
}

impl Params {
    /// An empty list.
    pub fn new(device: &Device, dtype: DType) -> Self {
        Self { device: device.clone(), dtype, list: Vec::new(), of_another: None }
    }

    /// Adds a trainable parameter of zeros.
    pub fn add(&mut self, name: impl Into<String>, shape: &[usize], decay: bool) -> ParamId {
        let value = Weight::Dense(self.device.zeros(Class::Weights, self.dtype, shape));
        let matrix = shape.len() == 2;
        self.list.push(Param { name: name.into(), value, matrix, trainable: true, decay, uses: Arc::default() });
        ParamId(self.list.len() - 1)
    }

    /// Moves the list to a device, without its numbers: they are to be written again, after [`Weight::empty_on`].
    pub fn move_to(&mut self, device: &Device) {
        self.device = device.clone();
        self.list.iter_mut().for_each(|param| param.value = param.value.empty_on(device));
    }

    /// Where the parameters live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Their float type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// A list of the parameters `used` alone, by the same names.
    pub(crate) fn subset(&self, used: BTreeSet<ParamId>) -> Self {
        let list = used.iter().map(|&id| self[id].clone()).collect();
        let handles = used.into_iter().map(|id| Handle::new(id, &self[id])).collect();
        Self { list, of_another: Some(handles), ..Self::new(&self.device, self.dtype) }
    }

    fn place(&self, id: ParamId) -> usize {
        match &self.of_another {
            None => id.0,
            Some(all) => all
                .binary_search_by_key(&id, |handle| handle.id)
                .expect("a block uses the parameters that it used before"),
        }
    }

    fn name(of_another: Option<&Vec<Handle>>, place: usize) -> ParamId {
        of_another.map_or(ParamId(place), |all| all[place].id)
    }

    /// Number of parameters (tensors, not elements).
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The parameters in the order in which they were added, with their names in this list.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (ParamId, &Param)> {
        self.list.iter().enumerate().map(|(i, p)| (Self::name(self.of_another.as_ref(), i), p))
    }

    /// As [`Params::iter`], writable.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ParamId, &mut Param)> {
        let Self { list, of_another, .. } = self;
        list.iter_mut().enumerate().map(|(i, p)| (Self::name(of_another.as_ref(), i), p))
    }
}

impl std::ops::Index<ParamId> for Params {
    type Output = Param;
    fn index(&self, id: ParamId) -> &Param {
        &self.list[self.place(id)]
    }
}

impl std::ops::IndexMut<ParamId> for Params {
    fn index_mut(&mut self, id: ParamId) -> &mut Param {
        let place = self.place(id);
        &mut self.list[place]
    }
}
