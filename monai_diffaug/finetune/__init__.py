"""Fine-tuning on the user's own images: what ``monai-diffaug train`` runs."""
