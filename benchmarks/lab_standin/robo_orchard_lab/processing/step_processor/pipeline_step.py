"""Stand-in: the forward and backward passes of a batch."""


class StepProcessorFromCallable:
    def __init__(self, forward_fn, need_backward=True):
        self.forward, self.need_backward = forward_fn, need_backward

    def __call__(self, pipeline_hooks, on_batch_hook_args, model):
        batch = on_batch_hook_args.batch
        with pipeline_hooks.begin(
            "on_model_forward",
            arg=on_batch_hook_args.copy_with_updates(batch=batch),
        ) as on_forward_hook_args:
            outputs, loss = self.forward(model, batch)
            on_forward_hook_args.model_outputs = outputs
        if self.need_backward:
            with pipeline_hooks.begin(
                "on_model_backward",
                arg=on_batch_hook_args.copy_with_updates(
                    batch=batch, model_outputs=outputs
                ),
            ) as on_backward_hook_args:
                on_backward_hook_args.accelerator.backward(loss)
        on_batch_hook_args.model_outputs = outputs
