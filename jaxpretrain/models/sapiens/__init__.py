"""The masked autoencoder of Sapiens and its published sizes."""
