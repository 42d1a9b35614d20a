"""Training: data, loss, optimizers, loop. Uses `openglm.model` as it is; nothing here redefines a layer."""
