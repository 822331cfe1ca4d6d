//! A tensor: shape, element type and storage; row-major and contiguous.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::meter::Class;
use crate::pool::Buffer;
use crate::{DType, Device, Element};

const CLASSES: [Class; 6] =
    [Class::Weights, Class::Gradients, Class::Optimizer, Class::Kept, Class::Workspace, Class::Cache];

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// The bytes behind one or several tensors.
#[derive(Debug)]
struct Storage {
    id: u64,
    class: AtomicU8,
    bytes: usize,
    buffer: Option<Buffer>,
    device: Device,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.device.meter().sub(CLASSES[usize::from(*self.class.get_mut())], self.bytes);
        if let Some(buffer) = self.buffer.take() {
            self.device.give(buffer);
        }
    }
}

/// Numbers on a device. A clone shares the storage; writing needs the only handle to it.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    dtype: DType,
    storage: Arc<Storage>,
}

impl Tensor {
    pub(crate) fn new(device: &Device, class: Class, dtype: DType, shape: &[usize]) -> Self {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let buffer = device.take(bytes);
        device.meter().add(class, bytes);
        let storage = Storage {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            class: AtomicU8::new(class as u8),
            bytes,
            buffer,
            device: device.clone(),
        };
        Self { shape: shape.to_vec(), dtype, storage: Arc::new(storage) }
    }

    /// Lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of a matrix; the length of a vector.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Columns of a matrix; 1 for a vector.
    pub fn cols(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the tensor lives.
    pub fn device(&self) -> &Device {
        &self.storage.device
    }

    /// Bytes of the storage, which clones share.
    pub fn bytes(&self) -> usize {
        self.storage.bytes
    }

    /// Names the storage: equal for clones, unequal for any two storages of a process.
    pub fn storage_id(&self) -> u64 {
        self.storage.id
    }

    /// Whether this is the only handle to its storage, so that it can be written in place.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.storage) == 1
    }

    /// What the storage is for.
    pub fn class(&self) -> Class {
        CLASSES[usize::from(self.storage.class.load(Ordering::Relaxed))]
    }

    /// Moves the storage to another class of the meter.
    pub fn reclass(&self, to: Class) {
        let from = CLASSES[usize::from(self.storage.class.swap(to as u8, Ordering::Relaxed))];
        self.device().meter().reclass(from, to, self.bytes());
    }

    /// A new tensor of the same shape and type in [`Class::Workspace`], its content unspecified.
    pub fn empty_like(&self) -> Self {
        self.device().empty(Class::Workspace, self.dtype, &self.shape)
    }

    /// A copy with its own storage in [`Class::Workspace`].
    pub fn copied(&self) -> Self {
        let mut copy = self.empty_like();
        self.device().kernels().copy(self, &mut copy);
        copy
    }

    /// This tensor if it is the only handle to its storage, else a copy: either way writable.
    #[must_use]
    pub fn into_owned(self) -> Self {
        if self.is_unique() { self } else { self.copied() }
    }

    /// The same elements under another shape of equal length.
    #[must_use]
    pub fn reshape(mut self, shape: &[usize]) -> Self {
        assert_eq!(self.len(), shape.iter().product::<usize>(), "reshape keeps the number of elements");
        self.shape = shape.to_vec();
        self
    }

    /// The elements, on the host; none on the shape-only device.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        assert_eq!(self.dtype, T::DTYPE, "element type");
        match &self.storage.buffer {
            // SAFETY: the buffer holds at least `len` initialised elements, is aligned, and lives as long as `self`;
            // writers need the only handle.
            Some(b) => unsafe { std::slice::from_raw_parts(b.as_ptr().cast(), self.len()) },
            None => &[],
        }
    }

    /// The elements, writable; this must be the only handle to the storage.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(self.dtype, T::DTYPE, "element type");
        let len = self.len();
        let storage = Arc::get_mut(&mut self.storage).expect("a tensor is written through its only handle");
        match &storage.buffer {
            // SAFETY: as in `as_slice`, and the handle is the only one.
            Some(b) => unsafe { std::slice::from_raw_parts_mut(b.as_ptr().cast(), len) },
            None => &mut [],
        }
    }

    /// Copies `data` in; does nothing on the shape-only device.
    pub fn write<T: Element>(&mut self, data: &[T]) {
        assert_eq!(data.len(), self.len(), "data fills the shape");
        if !self.device().is_meta() {
            self.as_mut_slice().copy_from_slice(data);
        }
    }

    /// The only element of a one-element float tensor; 0 on the shape-only device.
    pub fn scalar(&self) -> f64 {
        match self.dtype {
            _ if self.device().is_meta() => 0.0,
            DType::F64 => self.as_slice::<f64>()[0],
            DType::F32 => f64::from(self.as_slice::<f32>()[0]),
            DType::U32 => f64::from(self.as_slice::<u32>()[0]),
            DType::U8 => f64::from(self.as_slice::<u8>()[0]),
        }
    }

    /// The elements of a float tensor, widened; empty on the shape-only device.
    pub fn to_f64(&self) -> Vec<f64> {
        match self.dtype {
            DType::F64 => self.as_slice::<f64>().to_vec(),
            DType::F32 => self.as_slice::<f32>().iter().map(|&x| f64::from(x)).collect(),
            DType::U32 => self.as_slice::<u32>().iter().map(|&x| f64::from(x)).collect(),
            DType::U8 => self.as_slice::<u8>().iter().map(|&x| f64::from(x)).collect(),
        }
    }

    /// Writes `data`, rounded to the tensor's float type; does nothing on the shape-only device.
    pub fn write_f64(&mut self, data: impl IntoIterator<Item = f64>) {
        match self.dtype {
            _ if self.device().is_meta() => {}
            DType::F64 => self.as_mut_slice::<f64>().iter_mut().zip(data).for_each(|(y, x)| *y = x),
            DType::F32 => self.as_mut_slice::<f32>().iter_mut().zip(data).for_each(|(y, x)| *y = x as f32),
            other => panic!("write_f64 is for float tensors, not {other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_bytes_and_are_counted_once() {
        let device = Device::cpu();
        let a = device.tensor(Class::Workspace, &[2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let b = a.clone().reshape(&[6]);
        assert_eq!(device.meter().live().workspace, 24);
        assert_eq!(a.storage_id(), b.storage_id());
        b.reclass(Class::Kept);
        assert_eq!((device.meter().live().workspace, device.meter().live().kept), (0, 24));
        drop((a, b));
        assert_eq!(device.meter().live().total(), 0);
        assert_eq!(device.meter().peak().total(), 24);
    }

    #[test]
    fn meta_tensors_count_like_real_ones() {
        let device = Device::meta(1);
        let t = device.zeros(Class::Weights, DType::F64, &[4, 5]);
        assert_eq!((device.meter().live().weights, t.scalar()), (160, 0.0));
        assert!(t.as_slice::<f64>().is_empty());
    }
}
