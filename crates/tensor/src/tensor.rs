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
            self.device.backend().free(buffer);
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
        let buffer = device.backend().allocate(bytes);
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

    /// The bytes behind the elements, for kernels of a back end; none on the shape-only device.
    pub fn buffer(&self) -> Option<&Buffer> {
        self.storage.buffer.as_ref()
    }

    /// As [`Tensor::buffer`], to write to; this must be the only handle to the storage.
    pub fn buffer_mut(&mut self) -> Option<&Buffer> {
        assert!(self.is_unique(), "a tensor is written through its only handle");
        self.storage.buffer.as_ref()
    }

    /// The elements, on the host; none on the shape-only device.
    pub(crate) fn as_slice<T: Element>(&self) -> &[T] {
        assert_eq!(self.dtype, T::DTYPE, "element type");
        match &self.storage.buffer {
            // SAFETY: the buffer holds at least `len` initialised elements, is aligned, and lives as long as `self`;
            // writers need the only handle.
            Some(b) => unsafe { std::slice::from_raw_parts(b.as_ptr().cast(), self.len()) },
            None => &[],
        }
    }

    /// The elements, writable; this must be the only handle to the storage.
    pub(crate) fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
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
        self.write_range(0, data);
    }

    /// Copies `data` to the elements from `first` on; does nothing on the shape-only device.
    pub fn write_range<T: Element>(&mut self, first: usize, data: &[T]) {
        assert_eq!(self.dtype, T::DTYPE, "element type");
        assert!(first + data.len() <= self.len(), "what is written lies in the tensor");
        let storage = Arc::get_mut(&mut self.storage).expect("a tensor is written through its only handle");
        if let Some(buffer) = &storage.buffer {
            // SAFETY: elements are plain numbers without padding.
            let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) };
            storage.device.backend().upload(bytes, buffer, first * size_of::<T>());
        }
    }

    /// Copies the elements from `first` on into `data`, one wait for the device; does nothing on the shape-only device. After an error, which
    /// [`Device::sync`] tells, zeros.
    pub fn read_range<T: Element>(&self, first: usize, data: &mut [T]) {
        self.device().count_read();
        self.download(first, data);
    }

    /// Copies the bytes of the elements from `first` on into `bytes`, one wait for the device; does nothing on the shape-only device.
    pub fn read_bytes(&self, first: usize, bytes: &mut [u8]) {
        let size = self.dtype.size();
        assert!(first * size + bytes.len() <= self.bytes(), "what is read lies in the tensor");
        self.device().count_read();
        if let Some(buffer) = &self.storage.buffer {
            self.device().backend().download(buffer, first * size, bytes);
        }
    }

    /// Copies the bytes of elements to those from `first` on; does nothing on the shape-only device.
    pub fn write_bytes(&mut self, first: usize, bytes: &[u8]) {
        let size = self.dtype.size();
        assert!(first * size + bytes.len() <= self.bytes(), "what is written lies in the tensor");
        let storage = Arc::get_mut(&mut self.storage).expect("a tensor is written through its only handle");
        if let Some(buffer) = &storage.buffer {
            storage.device.backend().upload(bytes, buffer, first * size);
        }
    }

    /// All elements, one wait for the device; none on the shape-only device.
    pub fn to_vec<T: Element>(&self) -> Vec<T> {
        self.device().count_read();
        self.downloaded()
    }

    fn download<T: Element>(&self, first: usize, data: &mut [T]) {
        assert_eq!(self.dtype, T::DTYPE, "element type");
        assert!(first + data.len() <= self.len(), "what is read lies in the tensor");
        if let Some(buffer) = &self.storage.buffer {
            // SAFETY: elements are plain numbers without padding, for which every bit pattern is valid.
            let bytes = unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), size_of_val(data)) };
            self.device().backend().download(buffer, first * size_of::<T>(), bytes);
        }
    }

    fn downloaded<T: Element>(&self) -> Vec<T> {
        let mut data = vec![T::default(); if self.device().is_meta() { 0 } else { self.len() }];
        if !data.is_empty() {
            self.download(0, &mut data);
        }
        data
    }

    /// The only element of a one-element tensor, one wait for the device; 0 on the shape-only device.
    pub fn scalar(&self) -> f64 {
        self.to_f64().first().copied().unwrap_or(0.0)
    }

    /// The elements, widened, one wait for the device; none on the shape-only device.
    pub fn to_f64(&self) -> Vec<f64> {
        self.device().count_read();
        self.widened()
    }

    pub(crate) fn widened(&self) -> Vec<f64> {
        match self.dtype {
            DType::F64 => self.downloaded(),
            DType::F32 => self.downloaded::<f32>().into_iter().map(f64::from).collect(),
            DType::U32 => self.downloaded::<u32>().into_iter().map(f64::from).collect(),
            DType::U8 => self.downloaded::<u8>().into_iter().map(f64::from).collect(),
        }
    }

    /// Σ x² of a float tensor, one wait for the device; 0 on the shape-only device. Infinite or NaN if an element is.
    pub fn sum_squares(&self) -> f64 {
        let mut sum = self.device().zeros(Class::Workspace, DType::F64, &[1]);
        self.device().kernels().sum_squares(self, 0, &mut sum);
        sum.scalar()
    }

    /// Writes `data`, rounded to the tensor's float type; does nothing on the shape-only device.
    pub fn write_f64(&mut self, data: impl IntoIterator<Item = f64>) {
        let data = data.into_iter().take(if self.device().is_meta() { 0 } else { self.len() });
        match self.dtype {
            DType::F64 => self.write_range(0, &data.collect::<Vec<f64>>()),
            DType::F32 => self.write_range(0, &data.map(|x| x as f32).collect::<Vec<f32>>()),
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
        assert!(t.to_vec::<f64>().is_empty());
    }
}
