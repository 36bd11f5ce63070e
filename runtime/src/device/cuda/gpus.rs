//! The GPUs that the driver has.

use super::driver::{self, check};
use crate::error::Result;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

/// A GPU that the driver has.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Gpu {
    /// Its number, for `--device cuda:N`.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub memory: usize,
}

/// The driver's CUDA version, major and minor, and the GPUs that it has; an error that
/// says what is missing.
pub fn gpus() -> Result<((u32, u32), Vec<Gpu>)> {
    let version = driver::version()?;
    let all = (0..count()?).map(|number| Ok(facts(number)?.1));
    Ok((version, all.collect::<Result<_>>()?))
}

pub(super) fn count() -> Result<u32> {
    let mut count = 0;
    // SAFETY: the place outlives the call.
    check(
        unsafe { sys::cuDeviceGetCount(&mut count) },
        "counting devices",
    )?;
    Ok(count.max(0) as u32)
}

pub(super) fn facts(number: u32) -> Result<(sys::CUdevice, Gpu)> {
    let mut device = 0;
    let mut name = [0u8; 256];
    let mut memory = 0;
    // SAFETY: the places outlive the calls; the name's length leaves room for its end.
    unsafe {
        check(
            sys::cuDeviceGet(&mut device, number as i32),
            "opening the device",
        )?;
        let room = name.len() as i32 - 1;
        let read = sys::cuDeviceGetName(name.as_mut_ptr().cast(), room, device);
        check(read, "reading the device's name")?;
        let read = sys::cuDeviceTotalMem_v2(&mut memory, device);
        check(read, "reading the device's memory")?;
    }
    let major = attribute(
        device,
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
    )?;
    let minor = attribute(
        device,
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    )?;
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    let gpu = Gpu {
        number,
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        capability: (major, minor),
        memory,
    };
    Ok((device, gpu))
}

pub(super) fn attribute(device: sys::CUdevice, which: Attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the place outlives the call.
    check(
        unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) },
        "reading an attribute of the device",
    )?;
    Ok(value.max(0) as u32)
}
