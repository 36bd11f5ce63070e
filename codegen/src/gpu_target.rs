//! GPU targets as data.

use serde::{Deserialize, Serialize};

/// A GPU that PTX is generated for. Rates are those of one chip of the architecture, as
/// its data sheet gives them: a cost model's leads, not promises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuTarget {
    /// The name on the command line and in artifacts, which is PTX's: `sm_90a`.
    pub name: String,
    /// Compute capability, ten times: 90 for 9.0.
    pub capability: u32,
    /// The lowest PTX version that has everything in use.
    pub ptx: (u32, u32),
    /// The chip whose rates these are.
    pub chip: String,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block may have.
    pub shared_per_block: u32,
    /// Bytes of shared memory of a multiprocessor.
    pub shared_per_multiprocessor: u32,
    /// 32-bit registers of a multiprocessor.
    pub registers: u32,
    /// Threads that a multiprocessor holds.
    pub threads: u32,
    /// Bytes of the second-level cache.
    pub l2_bytes: u64,
    /// Bytes a second from and to device memory.
    pub bandwidth: f64,
    /// Operations a second in f32 without tensor cores.
    pub f32_peak: f64,
    /// Operations a second of tensor cores in tf32, dense.
    pub tf32_peak: f64,
    /// Operations a second of tensor cores in f16 and bf16, dense.
    pub f16_peak: f64,
    /// Operations a second of tensor cores in bytes, dense.
    pub i8_peak: f64,
    /// Operations a second of tensor cores in f8, dense; 0: it has none.
    pub f8_peak: f64,
}

impl GpuTarget {
    /// Ampere's A100 (SXM, 80 GB): `mma.sync`, `ldmatrix`, `cp.async`.
    pub fn sm_80() -> GpuTarget {
        GpuTarget {
            name: "sm_80".into(),
            capability: 80,
            ptx: (7, 1),
            chip: "A100 SXM 80 GB".into(),
            multiprocessors: 108,
            shared_per_block: 163 << 10,
            shared_per_multiprocessor: 164 << 10,
            registers: 65536,
            threads: 2048,
            l2_bytes: 40 << 20,
            bandwidth: 2039e9,
            f32_peak: 19.5e12,
            tf32_peak: 156e12,
            f16_peak: 312e12,
            i8_peak: 624e12,
            f8_peak: 0.0,
        }
    }

    /// Ada's L40S: as Ampere, with f8 and less shared memory.
    pub fn sm_89() -> GpuTarget {
        GpuTarget {
            name: "sm_89".into(),
            capability: 89,
            ptx: (8, 4),
            chip: "L40S".into(),
            multiprocessors: 142,
            shared_per_block: 99 << 10,
            shared_per_multiprocessor: 100 << 10,
            registers: 65536,
            threads: 1536,
            l2_bytes: 96 << 20,
            bandwidth: 864e9,
            f32_peak: 91.6e12,
            tf32_peak: 183e12,
            f16_peak: 362e12,
            i8_peak: 733e12,
            f8_peak: 733e12,
        }
    }

    /// Hopper's H100 (SXM): `wgmma`, the tensor memory accelerator, clusters.
    pub fn sm_90a() -> GpuTarget {
        GpuTarget {
            name: "sm_90a".into(),
            capability: 90,
            ptx: (8, 0),
            chip: "H100 SXM".into(),
            multiprocessors: 132,
            shared_per_block: 227 << 10,
            shared_per_multiprocessor: 228 << 10,
            registers: 65536,
            threads: 2048,
            l2_bytes: 50 << 20,
            bandwidth: 3350e9,
            f32_peak: 67e12,
            tf32_peak: 495e12,
            f16_peak: 989e12,
            i8_peak: 1979e12,
            f8_peak: 1979e12,
        }
    }

    /// The target of a name.
    pub fn named(name: &str) -> Option<GpuTarget> {
        GpuTarget::all().into_iter().find(|t| t.name == name)
    }

    /// Every target.
    pub fn all() -> [GpuTarget; 3] {
        [GpuTarget::sm_80(), GpuTarget::sm_89(), GpuTarget::sm_90a()]
    }

    /// Whether it has Hopper's own instructions.
    pub fn is_hopper(&self) -> bool {
        self.name == "sm_90a"
    }
}
