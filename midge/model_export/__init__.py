"""Export of a model to the formats of others: safetensors, ONNX, folders as the Hugging Face Hub has them, MLflow."""
