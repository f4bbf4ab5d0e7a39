cdef class PipelineHookArgs:
    cdef dict __dict__
    cdef object __weakref__
    cdef public object accelerator
    cdef public object epoch_id
    cdef public object step_id
    cdef public object global_step_id
    cdef public object max_epoch
    cdef public object max_step
    cdef public object start_epoch
    cdef public object start_step
    cdef public object dataloader
    cdef public object optimizer
    cdef public object lr_scheduler
    cdef public object batch
    cdef public object model_outputs
    cdef public object reduce_loss
    cdef public object model
    cdef public object exception
