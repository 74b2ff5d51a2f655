//! Riffle's C API from Rust: the best logits of each row behind a safe function, and a call that fails.
//!
//!     rustc top_k.rs -L FOLDER -l dylib=riffle
use std::ffi::{c_char, c_void, CStr};
use std::ptr;

#[repr(C)]
struct Matrix {
    data: *const c_void,
    rows: i64,
    cols: i64,
    row_stride: i64,
    dtype: i32, // 0: f32
    reserved: i32,
}

#[repr(C)]
struct TopKOut {
    size: usize,
    values: *mut c_void,
    values_stride: i64,
    indices: *mut c_void,
    indices_stride: i64,
    stats: *mut c_void,
    index_type: i32, // 0: int32
    reserved: i32,
}

extern "C" {
    fn riffle_topk(x: *const Matrix, k: i64, out: *const TopKOut, options: *const c_void) -> i32;
    fn riffle_error_message() -> *const c_char;
    fn riffle_version() -> *const c_char;
}

/// The k best of each row of `cols` logits: values and columns, best first.
fn top_k(logits: &[f32], cols: usize, k: usize) -> Result<(Vec<f32>, Vec<i32>), String> {
    let rows = logits.len() / cols;
    let (mut values, mut indices) = (vec![0f32; rows * k], vec![0i32; rows * k]);
    let x = Matrix {
        data: logits.as_ptr().cast(),
        rows: rows as i64,
        cols: cols as i64,
        row_stride: cols as i64,
        dtype: 0,
        reserved: 0,
    };
    let out = TopKOut {
        size: std::mem::size_of::<TopKOut>(),
        values: values.as_mut_ptr().cast(),
        values_stride: k as i64,
        indices: indices.as_mut_ptr().cast(),
        indices_stride: k as i64,
        stats: ptr::null_mut(),
        index_type: 0,
        reserved: 0,
    };
    // Both arrays are [rows, k], and `logits` is [rows, cols].
    match unsafe { riffle_topk(&x, k as i64, &out, ptr::null()) } {
        0 => Ok((values, indices)),
        _ => Err(unsafe { CStr::from_ptr(riffle_error_message()) }.to_string_lossy().into_owned()),
    }
}

fn main() {
    let version = unsafe { CStr::from_ptr(riffle_version()) };
    println!("riffle {}", version.to_string_lossy());
    let logits = [0.5, 3.0, -1.0, 3.0, 2.0, -4.0, -2.0, -3.0, -1.0, -5.0];
    let (values, indices) = top_k(&logits, 5, 3).expect("k is in range");
    println!("{indices:?} {values:?}");
    assert_eq!(indices, [1, 3, 4, 3, 1, 2]); // of equal logits the lower column comes first
    assert_eq!(values, [3.0, 3.0, 2.0, -1.0, -2.0, -3.0]);
    let error = top_k(&logits, 5, 6).expect_err("k = 6 of 5 columns must fail");
    println!("{error}");
    assert!(error.contains("k = 6"));
}
