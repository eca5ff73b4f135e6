"""What a person looks at: tables of models and results."""
