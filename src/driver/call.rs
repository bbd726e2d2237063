//! The calls of [`Driver`](super::Driver), as values: what the adaptors count, time and make fail.

/// Defines [`CallKind`] with one variant a fallible method of the trait.
macro_rules! calls {
    ($($variant:ident $name:literal $method:literal,)*) => {
        /// A fallible method of [`Driver`](super::Driver).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum CallKind {
            $(
                #[doc = concat!("[`Driver::", $method, "`](super::Driver::", $method, ")")]
                $variant,
            )*
        }

        impl CallKind {
            /// Every call, in the order of the trait.
            pub const ALL: &'static [CallKind] = &[$(CallKind::$variant),*];

            /// The CUDA driver function behind the method, such as `cuMemCreate`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(CallKind::$variant => $name,)*
                }
            }
        }
    };
}

calls! {
    MemoryInfo "cuMemGetInfo" "memory_info",
    Reserve "cuMemAddressReserve" "reserve",
    Unreserve "cuMemAddressFree" "unreserve",
    Create "cuMemCreate" "create",
    Release "cuMemRelease" "release",
    Map "cuMemMap" "map",
    Unmap "cuMemUnmap" "unmap",
    SetAccess "cuMemSetAccess" "set_access",
    Export "cuMemExportToShareableHandle" "export",
    AllocPlain "cuMemAlloc" "alloc_plain",
    FreePlain "cuMemFree" "free_plain",
    AllocHost "cuMemHostAlloc" "alloc_host",
    FreeHost "cuMemFreeHost" "free_host",
    PinHost "cuMemHostRegister" "pin_host",
    UnpinHost "cuMemHostUnregister" "unpin_host",
    CreateStream "cuStreamCreate" "create_stream",
    DestroyStream "cuStreamDestroy" "destroy_stream",
    SynchronizeStream "cuStreamSynchronize" "synchronize_stream",
    SynchronizeDevice "cuCtxSynchronize" "synchronize_device",
    CreateEvent "cuEventCreate" "create_event",
    DestroyEvent "cuEventDestroy" "destroy_event",
    RecordEvent "cuEventRecord" "record_event",
    QueryEvent "cuEventQuery" "query_event",
    WaitEvent "cuStreamWaitEvent" "wait_event",
    SynchronizeEvent "cuEventSynchronize" "synchronize_event",
    CaptureStatus "cuStreamGetCaptureInfo" "capture_status",
    Copy "cuMemcpyAsync" "copy",
    Fill "cuMemsetD8Async" "fill",
    CopyBlocks "cuLaunchKernel(copy_blocks)" "copy_blocks",
    FillWords "cuLaunchKernel(fill_words)" "fill_words",
    CheckWords "cuLaunchKernel(check_words)" "check_words",
    Checksum "cuLaunchKernel(checksum)" "checksum",
    Quantize "cuLaunchKernel(quantize)" "quantize",
    Dequantize "cuLaunchKernel(dequantize)" "dequantize",
    Write "cuMemcpyHtoDAsync" "write",
    Read "cuMemcpyDtoHAsync" "read",
}

impl CallKind {
    /// How many calls there are.
    pub const COUNT: usize = CallKind::ALL.len();

    /// The position in [`CallKind::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}
