//! Graphs, built node by node: the driver changes what a node holds by the node's handle,
//! which recording a stream would not give.
//!
//! The driver copies a node's parameters when it is given them, and a change holds for what
//! is started afterwards (`cuGraphAddKernelNode`, `cuGraphExecKernelNodeSetParams`,
//! `cuGraphExecMemcpyNodeSetParams` of its manual). A node's handle is one of the graph that
//! was instantiated, so that stays as long as what starts.

use super::driver::{check, failed};
use super::{cluster, parameters};
use crate::device::{Launch, Node};
use crate::error::Result;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr::{null, null_mut};

/// A graph, what starts it, and its nodes in order. It is made, changed and dropped while
/// its context is the thread's.
pub(super) struct Graph {
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
    nodes: Vec<sys::CUgraphNode>,
}

/// What nodes refer to.
pub(super) struct Place<'a> {
    pub(super) kernels: &'a [sys::CUfunction],
    pub(super) context: sys::CUcontext,
}

impl Graph {
    /// A graph whose nodes follow each other.
    pub(super) fn new(nodes: &[Node], place: &Place) -> Result<Graph> {
        // What is there already is given back if the rest cannot be had.
        let mut graph = Graph {
            graph: null_mut(),
            exec: null_mut(),
            nodes: vec![],
        };
        // SAFETY: the place outlives the call.
        check(
            unsafe { sys::cuGraphCreate(&mut graph.graph, 0) },
            "making a graph",
        )?;
        nodes.iter().try_for_each(|node| graph.add(node, place))?;
        // SAFETY: the graph is whole; the place outlives the call.
        check(
            unsafe { sys::cuGraphInstantiateWithFlags(&mut graph.exec, graph.graph, 0) },
            "instantiating a graph",
        )?;
        Ok(graph)
    }

    fn add(&mut self, node: &Node, place: &Place) -> Result<()> {
        let mut new = null_mut();
        let (before, count) = match self.nodes.last() {
            Some(last) => (last as *const sys::CUgraphNode, 1),
            None => (null(), 0),
        };
        match node {
            Node::Copy { from, to, bytes } => {
                let copy = copy(*from, *to, *bytes);
                // SAFETY: the parameters are read before this returns.
                let code = unsafe {
                    let (graph, context) = (self.graph, place.context);
                    sys::cuGraphAddMemcpyNode(&mut new, graph, before, count, &copy, context)
                };
                check(code, "recording a copy")?;
            }
            Node::Launch(l) => {
                let mut size = l.params.len();
                let mut extra = parameters(l, &mut size);
                let kernel = kernel(l, place, &mut extra);
                // SAFETY: as above, with the block of bytes that they point to.
                let code = unsafe {
                    sys::cuGraphAddKernelNode_v2(&mut new, self.graph, before, count, &kernel)
                };
                check(code, &format!("recording the kernel of {}", l.label))?;
                // Devices before Hopper know no clusters.
                if l.cluster != [1; 3] {
                    let what = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
                    let shape = cluster(l.cluster);
                    // SAFETY: the node was added just now; the value is read here.
                    let code = unsafe { sys::cuGraphKernelNodeSetAttribute(new, what, &shape) };
                    check(code, &format!("recording the clusters of {}", l.label))?;
                }
            }
        }
        self.nodes.push(new);
        Ok(())
    }

    /// Gives a node what it holds from the next start on; false where the driver does not
    /// change it.
    pub(super) fn update(&self, at: usize, node: &Node, place: &Place) -> Result<bool> {
        let handle = self.nodes[at];
        let code = match node {
            Node::Copy { from, to, bytes } => {
                let copy = copy(*from, *to, *bytes);
                // SAFETY: the node is of the graph that was instantiated; the parameters are
                // read before this returns.
                unsafe {
                    sys::cuGraphExecMemcpyNodeSetParams(self.exec, handle, &copy, place.context)
                }
            }
            Node::Launch(l) => {
                let mut size = l.params.len();
                let mut extra = parameters(l, &mut size);
                let kernel = kernel(l, place, &mut extra);
                // SAFETY: as above.
                unsafe { sys::cuGraphExecKernelNodeSetParams_v2(self.exec, handle, &kernel) }
            }
        };
        match code {
            sys::CUresult::CUDA_SUCCESS => Ok(true),
            sys::CUresult::CUDA_ERROR_INVALID_VALUE
            | sys::CUresult::CUDA_ERROR_NOT_SUPPORTED
            | sys::CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE => Ok(false),
            code => Err(failed(code, "updating a graph")),
        }
    }

    /// Starts it in a stream of the same context.
    pub(super) fn start(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: graph and stream are one device's, and both are there.
        check(
            unsafe { sys::cuGraphLaunch(self.exec, stream) },
            "starting a graph",
        )
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the handles are used no more; what was started finishes.
        unsafe {
            if !self.exec.is_null() {
                sys::cuGraphExecDestroy(self.exec).result().ok();
            }
            if !self.graph.is_null() {
                sys::cuGraphDestroy(self.graph).result().ok();
            }
        }
    }
}

/// A launch as a node takes it; `extra` is its parameters.
fn kernel(l: &Launch, place: &Place, extra: &mut [*mut c_void; 5]) -> sys::CUDA_KERNEL_NODE_PARAMS {
    sys::CUDA_KERNEL_NODE_PARAMS {
        func: place.kernels[l.kernel.0 as usize],
        gridDimX: l.grid[0],
        gridDimY: l.grid[1],
        gridDimZ: l.grid[2],
        blockDimX: l.block[0],
        blockDimY: l.block[1],
        blockDimZ: l.block[2],
        sharedMemBytes: l.shared,
        kernelParams: null_mut(),
        extra: extra.as_mut_ptr(),
        kern: null_mut(),
        ctx: place.context,
    }
}

/// A copy of one row: the driver changes no others.
fn copy(from: u64, to: u64, bytes: usize) -> sys::CUDA_MEMCPY3D {
    sys::CUDA_MEMCPY3D {
        srcXInBytes: 0,
        srcY: 0,
        srcZ: 0,
        srcLOD: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcHost: null(),
        srcDevice: from,
        srcArray: null_mut(),
        reserved0: null_mut(),
        srcPitch: bytes,
        srcHeight: 1,
        dstXInBytes: 0,
        dstY: 0,
        dstZ: 0,
        dstLOD: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: null_mut(),
        dstDevice: to,
        dstArray: null_mut(),
        reserved1: null_mut(),
        dstPitch: bytes,
        dstHeight: 1,
        WidthInBytes: bytes,
        Height: 1,
        Depth: 1,
    }
}
